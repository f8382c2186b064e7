package agent

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// TestCSIProcess: with own_process the driver is served by a process that has
// nothing else of an agent, and the agent has no driver.
func TestCSIProcess(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "csi") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, sub := range []string{"kubelet/pods", "public", "plugin"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lines := `kubelet_dir = "` + dir + `/kubelet"
		socket_path = "` + dir + `/plugin/csi.sock"`
	options := Options{Log: slog.New(slog.DiscardHandler), Version: "test"}
	socket := filepath.Join(dir, "public/api.sock")

	without := csiSection(t, socket, lines)
	if err := ServeCSI(t.Context(), without, options); err == nil || !strings.Contains(err.Error(), "agent.csi.own_process") {
		t.Errorf("a section without own_process: %v", err)
	}

	c := csiSection(t, socket, lines+"\nown_process = true")
	c.Agent.DataDir = filepath.Join(dir, "data")
	a, err := New(c, options)
	if err != nil {
		t.Fatal(err)
	}
	if a.csi != nil {
		t.Error("the agent has the driver too")
	}

	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- ServeCSI(ctx, c, options) }()
	conn, err := grpc.NewClient("unix:"+dir+"/plugin/csi.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	info, err := spec.NewIdentityClient(conn).GetPluginInfo(ctx, &spec.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	if err != nil || info.GetName() != "csi.spiffe.io" {
		t.Errorf("the driver says %v, %v", info, err)
	}
	if err := CheckCSI(ctx, c); err != nil {
		t.Errorf("checked: %v", err)
	}
	if conn, err := net.Dial("unix", socket); err == nil {
		_ = conn.Close()
		t.Error("somebody serves the Workload API")
	}
	stop()
	if err := <-served; err != nil {
		t.Errorf("it ended with %v", err)
	}
	if err := CheckCSI(t.Context(), c); err == nil || !strings.Contains(err.Error(), "plugin/csi.sock does not answer") {
		t.Errorf("checked, when it has ended: %v", err)
	}
	c.Agent.CSI = nil
	if err := CheckCSI(t.Context(), c); err == nil || !strings.Contains(err.Error(), "agent.csi: is not there") {
		t.Errorf("checked, without a section: %v", err)
	}
}
