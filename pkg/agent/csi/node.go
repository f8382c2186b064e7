package csi

import (
	"context"
	"fmt"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/credence-id/credence/pkg/telemetry"
)

// node is CSI's service Node. Calls for stages, statistics and expansion are not
// implemented, and no capability announces them.
type node struct {
	spec.UnimplementedNodeServer
	s *Service
}

// NodeGetInfo says which node this is. Any number of volumes can be published.
func (n node) NodeGetInfo(context.Context, *spec.NodeGetInfoRequest) (*spec.NodeGetInfoResponse, error) {
	return &spec.NodeGetInfoResponse{NodeId: n.s.cfg.NodeID}, nil
}

// NodeGetCapabilities answers that there are none beyond what CSI requires.
func (node) NodeGetCapabilities(context.Context, *spec.NodeGetCapabilitiesRequest) (*spec.NodeGetCapabilitiesResponse, error) {
	return &spec.NodeGetCapabilitiesResponse{}, nil
}

// NodePublishVolume puts the Workload API's directory at the target. Kubelet calls
// it again for pods that run when it is restarted itself; there is one mount all
// the same.
func (n node) NodePublishVolume(ctx context.Context, req *spec.NodePublishVolumeRequest) (*spec.NodePublishVolumeResponse, error) {
	s := n.s
	p, err := parsePublish(s.cfg.KubeletDir, req)
	if err != nil {
		return nil, err
	}
	release, err := s.turns.take(ctx, p.target.path)
	if err != nil {
		return nil, err
	}
	defer release()
	what, err := s.mounts.publish(p.target)
	if err != nil {
		return nil, fmt.Errorf("publishing volume %s: %w", p.volume, err)
	}
	s.metrics.published.WithLabelValues(string(what)).Inc()
	s.metrics.has(p.target.path, true)
	s.log.InfoContext(ctx, "volume published", telemetry.Outcome, what, telemetry.Volume, p.volume,
		telemetry.PodName, p.pod, telemetry.PodNamespace, p.namespace, telemetry.PodUID, p.target.uid)
	return &spec.NodePublishVolumeResponse{}, nil
}

// NodeUnpublishVolume leaves nothing of the volume at the target. That there is
// nothing is no error.
func (n node) NodeUnpublishVolume(ctx context.Context, req *spec.NodeUnpublishVolumeRequest) (*spec.NodeUnpublishVolumeResponse, error) {
	s := n.s
	t, err := parseUnpublish(s.cfg.KubeletDir, req)
	if err != nil {
		return nil, err
	}
	release, err := s.turns.take(ctx, t.path)
	if err != nil {
		return nil, err
	}
	defer release()
	what, err := s.mounts.unpublish(t)
	if err != nil {
		return nil, fmt.Errorf("unpublishing volume %s: %w", req.GetVolumeId(), err)
	}
	s.metrics.unpublished.WithLabelValues(string(what)).Inc()
	s.metrics.has(t.path, false)
	s.log.InfoContext(ctx, "volume unpublished", telemetry.Outcome, what, telemetry.Volume, req.GetVolumeId(), telemetry.PodUID, t.uid)
	return &spec.NodeUnpublishVolumeResponse{}, nil
}
