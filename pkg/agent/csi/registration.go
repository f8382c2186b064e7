package csi

import (
	"context"

	"github.com/credence-id/credence/pkg/telemetry"
	pluginv1 "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// specVersion is what kubelet is told that the service speaks: kubelet wants a
// whole version of CSI, of which it looks at the major number alone.
const specVersion = "1.0.0"

// registrar answers kubelet, which finds its socket in the directory of plugins
// that it watches, asks there for the driver's socket, and forgets the driver
// when the socket is removed. A kubelet that is restarted asks again.
type registrar struct {
	pluginv1.UnimplementedRegistrationServer
	s *Service
}

// GetInfo says where the CSI service is.
func (r registrar) GetInfo(context.Context, *pluginv1.InfoRequest) (*pluginv1.PluginInfo, error) {
	return &pluginv1.PluginInfo{
		Type: pluginv1.CSIPlugin, Name: r.s.cfg.Driver, Endpoint: r.s.cfg.Endpoint, SupportedVersions: []string{specVersion},
	}, nil
}

// NotifyRegistrationStatus is told whether kubelet has taken the driver. When it
// has not, it tries again by itself.
func (r registrar) NotifyRegistrationStatus(ctx context.Context, st *pluginv1.RegistrationStatus) (*pluginv1.RegistrationStatusResponse, error) {
	if st.GetPluginRegistered() {
		r.s.metrics.registered.Set(1)
		r.s.log.InfoContext(ctx, "kubelet has registered the CSI driver", telemetry.Driver, r.s.cfg.Driver)
	} else {
		r.s.metrics.registered.Set(0)
		r.s.log.ErrorContext(ctx, "kubelet cannot use the CSI driver; see that it finds the socket at this path, and set kubelet_socket_path if not",
			telemetry.Driver, r.s.cfg.Driver, telemetry.Path, r.s.cfg.Endpoint, telemetry.Reason, st.GetError())
	}
	return &pluginv1.RegistrationStatusResponse{}, nil
}
