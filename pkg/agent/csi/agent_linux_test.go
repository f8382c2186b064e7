package csi_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/credence-id/credence/pkg/agent"
	"github.com/credence-id/credence/pkg/agent/csi"
	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
	pluginv1 "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// kubelet finds drivers as kubelet does: it watches a directory of sockets.
type kubelet struct {
	t       *testing.T
	m       *csi.Machine
	watcher *fsnotify.Watcher
	ended   chan struct{} // closed when the agent that was started last is not there any more
}

func newKubelet(t *testing.T, m *csi.Machine) *kubelet {
	t.Helper()
	w, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	if err := w.Add(filepath.Join(m.Kubelet, "plugins_registry")); err != nil {
		t.Fatal(err)
	}
	return &kubelet{t: t, m: m, watcher: w}
}

// driver waits for a driver that registers, takes it, and returns its service.
func (k *kubelet) driver() spec.NodeClient {
	k.t.Helper()
	for {
		select {
		case <-k.ended:
			k.t.Fatal("the agent has ended before its driver was registered")
		case err := <-k.watcher.Errors:
			k.t.Fatal(err)
		case e := <-k.watcher.Events:
			if !e.Has(fsnotify.Create) || !strings.HasSuffix(e.Name, ".sock") {
				continue
			}
			registration := pluginv1.NewRegistrationClient(csi.Dial(k.t, e.Name))
			info, err := registration.GetInfo(k.t.Context(), &pluginv1.InfoRequest{})
			if err != nil {
				k.t.Fatal(err)
			}
			node := spec.NewNodeClient(csi.Dial(k.t, info.GetEndpoint()))
			if id, err := node.NodeGetInfo(k.t.Context(), &spec.NodeGetInfoRequest{}); err != nil || id.GetNodeId() != "node-1" {
				k.t.Fatal(id, err)
			}
			if _, err := registration.NotifyRegistrationStatus(k.t.Context(), &pluginv1.RegistrationStatus{PluginRegistered: true}); err != nil {
				k.t.Fatal(err)
			}
			return node
		}
	}
}

// startAgent runs an agent of the machine that has no server: it serves the
// Workload API, and says that it has nothing yet.
func (k *kubelet) startAgent() (stop func()) {
	t, m := k.t, k.m
	t.Helper()
	path := filepath.Join(m.Dir, "agent.conf")
	text := fmt.Sprintf(`
agent {
	trust_domain = "example.org"
	data_dir = %[1]q
	server_address = "127.0.0.1"
	server_port = 1
	insecure_bootstrap = true
	join_token = "x"
	socket_path = %[2]q
	csi {
		kubelet_dir = %[3]q
		registration_dir = %[4]q
		node_id = "node-1"
	}
}
plugins {
	KeyManager "memory" {}
	NodeAttestor "join_token" {}
	WorkloadAttestor "unix" {}
}
`, filepath.Join(m.Dir, "data"), filepath.Join(m.Source, "api.sock"), m.Kubelet, filepath.Join(m.Kubelet, "plugins_registry"))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := agent.Load(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Preflight(); err != nil {
		t.Fatal(err)
	}
	a, err := agent.New(c, agent.Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	k.ended = make(chan struct{})
	var g sync.WaitGroup
	g.Go(func() {
		defer close(k.ended)
		if err := a.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop = func() {
		cancel()
		g.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// TestAgent: kubelet finds the driver of an agent, a pod gets the Workload API by
// it, and has it again after each restart of the agent, by the same mount. It runs
// alone: processes that other tests start hold the lock of data_dir for a moment.
func TestAgent(t *testing.T) {
	m := csi.NewMachine(t)
	kubelet := newKubelet(t, m)
	path := m.Volume("uid-1", "api", csi.DefaultDriver)
	reach := func(inside string) {
		t.Helper()
		conn := csi.Dial(t, filepath.Join(inside, "api.sock"))
		if _, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
			t.Fatalf("the Workload API is not reached from the pod: %v", err)
		}
	}
	var inside string
	var before int
	for run := range 3 {
		stop := kubelet.startAgent()
		node := kubelet.driver()
		if run == 0 {
			publish(t, node, path)
			inside = m.Container(path, unix.MS_PRIVATE)
			before = m.Mounts(path)[0].ID
		}
		reach(inside)
		publish(t, node, path)
		if infos := m.Mounts(path); len(infos) != 1 || infos[0].ID != before {
			t.Errorf("after %d restarts there is not the one mount from before: %v", run, infos)
		}
		stop()
	}
	kubelet.startAgent()
	node := kubelet.driver()
	reach(inside)
	if _, err := node.NodeUnpublishVolume(t.Context(), &spec.NodeUnpublishVolumeRequest{VolumeId: "x", TargetPath: path}); err != nil {
		t.Fatal(err)
	}
	m.WantNothing(path)
}

func publish(t *testing.T, node spec.NodeClient, path string) {
	t.Helper()
	if _, err := node.NodePublishVolume(t.Context(), csi.Request(path), grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
}
