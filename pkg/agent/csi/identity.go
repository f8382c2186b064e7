package csi

import (
	"context"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// identity is CSI's service Identity.
type identity struct {
	spec.UnimplementedIdentityServer
	s *Service
}

// GetPluginInfo says which driver this is.
func (i identity) GetPluginInfo(context.Context, *spec.GetPluginInfoRequest) (*spec.GetPluginInfoResponse, error) {
	return &spec.GetPluginInfoResponse{Name: i.s.cfg.Driver, VendorVersion: i.s.cfg.Version}, nil
}

// GetPluginCapabilities answers that there is nothing but the node service.
func (identity) GetPluginCapabilities(context.Context, *spec.GetPluginCapabilitiesRequest) (*spec.GetPluginCapabilitiesResponse, error) {
	return &spec.GetPluginCapabilitiesResponse{}, nil
}

// Probe says whether there is a directory that pods can be given.
func (i identity) Probe(context.Context, *spec.ProbeRequest) (*spec.ProbeResponse, error) {
	return &spec.ProbeResponse{Ready: wrapperspb.Bool(i.s.mounts.ready() == nil)}, nil
}
