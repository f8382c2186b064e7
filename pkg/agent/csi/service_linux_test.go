package csi

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/credence-id/credence/pkg/unixsock"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	pluginv1 "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

func value(t *testing.T, m prometheus.Metric) float64 {
	t.Helper()
	var out dto.Metric
	if err := m.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.GetCounter().GetValue() + out.GetGauge().GetValue()
}

// Dial opens a connection that tries again quickly, as kubelet does.
func Dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 20 * time.Second, Backoff: backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.5, MaxDelay: 100 * time.Millisecond}}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// run serves as the agent does, until the test ends or stop is called.
func (m *Machine) run(s *Service) (csi, registration *grpc.ClientConn, stop func()) {
	m.T.Helper()
	var listeners [2]net.Listener
	var conns [2]*grpc.ClientConn
	for i, path := range []string{s.cfg.Endpoint, filepath.Join(m.Kubelet, "plugins_registry", "csi.spiffe.io-reg.sock")} {
		l, err := unixsock.ListenLasting(m.T.Context(), path, 0o600, 0o750)
		if err != nil {
			m.T.Fatal(err)
		}
		listeners[i], conns[i] = l, Dial(m.T, path)
	}
	ctx, cancel := context.WithCancel(m.T.Context())
	var g errgroup.Group
	g.Go(func() error { return s.Run(ctx, listeners[0], listeners[1]) })
	stop = sync.OnceFunc(func() {
		cancel()
		if err := g.Wait(); err != nil {
			m.T.Error(err)
		}
	})
	m.T.Cleanup(stop)
	return conns[0], conns[1], stop
}

// Request is what kubelet sends for an inline volume.
func Request(target string) *spec.NodePublishVolumeRequest {
	return &spec.NodePublishVolumeRequest{
		VolumeId: "csi-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", TargetPath: target, Readonly: true,
		VolumeCapability: &spec.VolumeCapability{
			AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{}},
			AccessMode: &spec.VolumeCapability_AccessMode{Mode: spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		VolumeContext: map[string]string{
			ephemeralKey: "true", podNameKey: "web-0", podNamespaceKey: "shop", podUIDKey: "uid-1", "csi.storage.k8s.io/serviceAccount.name": "web",
		},
	}
}

func unpublishing(target string) *spec.NodeUnpublishVolumeRequest {
	return &spec.NodeUnpublishVolumeRequest{VolumeId: Request(target).GetVolumeId(), TargetPath: target}
}

// TestKubelet is a volume's life as kubelet has it, over restarts of both sides.
func TestKubelet(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	path := m.Volume("uid-1", "api", DefaultDriver)
	s := m.service()
	conn, registration, stop := m.run(s)

	register := func(registration *grpc.ClientConn) {
		t.Helper()
		kubelet := pluginv1.NewRegistrationClient(registration)
		info, err := kubelet.GetInfo(t.Context(), &pluginv1.InfoRequest{})
		if err != nil {
			t.Fatal(err)
		}
		want := &pluginv1.PluginInfo{Type: "CSIPlugin", Name: "csi.spiffe.io", Endpoint: s.cfg.Endpoint, SupportedVersions: []string{"1.0.0"}}
		if diff := cmp.Diff(want, info, protocmp.Transform()); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		node, err := spec.NewNodeClient(Dial(t, info.GetEndpoint())).NodeGetInfo(t.Context(), &spec.NodeGetInfoRequest{})
		if err != nil || node.GetNodeId() != "node-1" {
			t.Fatalf("%v, %v", node, err)
		}
		if _, err := kubelet.NotifyRegistrationStatus(t.Context(), &pluginv1.RegistrationStatus{PluginRegistered: true}); err != nil {
			t.Fatal(err)
		}
	}
	publish := func(conn *grpc.ClientConn) {
		t.Helper()
		if _, err := spec.NewNodeClient(conn).NodePublishVolume(t.Context(), Request(path)); err != nil {
			t.Fatal(err)
		}
		m.Want(path, "first")
	}
	register(registration)
	if got := value(t, s.metrics.registered); got != 1 {
		t.Errorf("registered is %v", got)
	}
	for range 4 { // kubelet is restarted: it registers and publishes again
		register(registration)
		publish(conn)
	}
	inside := m.Container(path, unix.MS_PRIVATE)

	stop() // the agent is restarted
	m.Want(path, "first")
	s = m.service()
	conn, registration, _ = m.run(s)
	register(registration)
	m.Want(path, "first")
	if _, err := os.Stat(filepath.Join(inside, "first")); err != nil {
		t.Error(err)
	}
	if got := value(t, s.metrics.volumes); got != 1 {
		t.Errorf("%v volumes, want 1", got)
	}
	publish(conn)

	node := spec.NewNodeClient(conn)
	for range 3 {
		if _, err := node.NodeUnpublishVolume(t.Context(), unpublishing(path)); err != nil {
			t.Fatal(err)
		}
		m.WantNothing(path)
	}
	if got := value(t, s.metrics.volumes); got != 0 {
		t.Errorf("%v volumes, want 0", got)
	}
	if _, err := pluginv1.NewRegistrationClient(registration).NotifyRegistrationStatus(t.Context(), &pluginv1.RegistrationStatus{Error: "no"}); err != nil {
		t.Error(err)
	}
	if got := value(t, s.metrics.registered); got != 0 {
		t.Errorf("registered is %v after kubelet has refused", got)
	}
}

// TestIdentityAndCapabilities are what every CSI driver has to answer.
func TestIdentityAndCapabilities(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	conn, _, _ := m.run(m.service())
	id, node := spec.NewIdentityClient(conn), spec.NewNodeClient(conn)
	info, err := id.GetPluginInfo(t.Context(), &spec.GetPluginInfoRequest{})
	if err != nil || info.GetName() != "csi.spiffe.io" {
		t.Errorf("%v, %v", info, err)
	}
	if c, err := id.GetPluginCapabilities(t.Context(), &spec.GetPluginCapabilitiesRequest{}); err != nil || len(c.GetCapabilities()) > 0 {
		t.Errorf("%v, %v", c, err)
	}
	if c, err := node.NodeGetCapabilities(t.Context(), &spec.NodeGetCapabilitiesRequest{}); err != nil || len(c.GetCapabilities()) > 0 {
		t.Errorf("%v, %v", c, err)
	}
	for _, want := range []bool{true, false} {
		if p, err := id.Probe(t.Context(), &spec.ProbeRequest{}); err != nil || p.GetReady().GetValue() != want {
			t.Errorf("probe: %v, %v, want %v", p, err, want)
		}
		m.remove(m.Source)
	}
	if _, err := node.NodeStageVolume(t.Context(), &spec.NodeStageVolumeRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("staging: %v", err)
	}
}

// TestRefusals have CSI's code, name what is wrong, and are counted.
func TestRefusals(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	path := m.Volume("uid-1", "api", DefaultDriver)
	s := m.service()
	conn, _, _ := m.run(s)
	node := spec.NewNodeClient(conn)
	req := Request(path)
	req.Readonly = false
	_, err := node.NodePublishVolume(t.Context(), req)
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "readOnly: true") {
		t.Errorf("%v", err)
	}
	if got := value(t, s.metrics.calls.WithLabelValues("NodePublishVolume", "InvalidArgument")); got != 1 {
		t.Errorf("%v refusals are counted", got)
	}
	m.remove(m.Source)
	if _, err := node.NodePublishVolume(t.Context(), Request(path)); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("%v, want FailedPrecondition", err)
	}
	big := Request(path)
	big.VolumeContext["x"] = strings.Repeat("x", maxMessage)
	if _, err := node.NodePublishVolume(t.Context(), big); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("%v, want ResourceExhausted", err)
	}
}

// TestCallsAtOnce: whatever comes at once, for one volume and for others, there
// is one mount in the end, or none.
func TestCallsAtOnce(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	conn, _, _ := m.run(m.service())
	node := spec.NewNodeClient(conn)
	var paths []string
	for _, uid := range []string{"uid-1", "uid-2", "uid-3"} {
		paths = append(paths, m.Volume(uid, "api", DefaultDriver))
	}
	var g errgroup.Group
	for i := range 20 {
		for _, path := range paths {
			g.Go(func() error {
				_, err := node.NodePublishVolume(t.Context(), Request(path))
				return err
			})
			if i%3 == 0 {
				g.Go(func() error {
					_, err := node.NodeUnpublishVolume(t.Context(), unpublishing(path))
					return err
				})
			}
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if n := len(m.Mounts(path)); n > 1 {
			t.Errorf("%d mounts", n)
		}
		if _, err := node.NodePublishVolume(t.Context(), Request(path)); err != nil {
			t.Fatal(err)
		}
		m.Want(path, "first")
	}
}

// TestOnlyRootIsAnswered: kubelet runs as root; nobody else can open the sockets.
func TestOnlyRootIsAnswered(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	s := m.service()
	m.run(s)
	for _, dir := range []string{m.Kubelet, filepath.Dir(s.cfg.Endpoint)} {
		if err := os.Chmod(dir, 0o755); err != nil { // the socket alone keeps others away
			t.Fatal(err)
		}
	}
	if err := m.asNobody(s.cfg.Endpoint); err == nil || !strings.Contains(err.Error(), "connecting: permission denied") {
		t.Errorf("another user connects: %v", err)
	}
}
