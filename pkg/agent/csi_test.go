package agent

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// csiSection loads a configuration whose section csi has these lines.
func csiSection(t *testing.T, socket, lines string) *Config {
	t.Helper()
	c := loadText(t, `agent {
	trust_domain = "example.org"
	data_dir = "/var/lib/credence/agent"
	server_address = "server.example.org"
	insecure_bootstrap = true
	socket_path = "`+socket+`"
	csi {
`+lines+`
	}
}
plugins {
	KeyManager "memory" {}
	NodeAttestor "join_token" {}
	WorkloadAttestor "unix" {}
}`)
	return c
}

func TestCSISection(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("the section is refused here")
	}
	const socket = "/run/credence/agent/public/api.sock"
	tests := []struct {
		name, socket, lines string
		key                 string // that is refused; empty: none
	}{
		{"empty", socket, "", ""},
		{"of the manifests", socket, `registration_dir = "/var/lib/kubelet/plugins_registry"`, ""},
		{"all", socket, `driver_name = "csi.example.org"
			kubelet_dir = "/mnt/kubelet"
			socket_path = "/spiffe-csi/csi.sock"
			kubelet_socket_path = "/mnt/kubelet/plugins/csi.example.org/csi.sock"
			registration_dir = "/registration"
			node_id = "node-1"`, ""},
		{"a key that is not known", socket, `name = "x"`, "agent.csi.name"},
		{"a name with a slash", socket, `driver_name = "../x"`, "agent.csi.driver_name"},
		{"a name that ends in a dot", socket, `driver_name = "csi."`, "agent.csi.driver_name"},
		{"the longest name", socket, `driver_name = "` + strings.Repeat("x", 63) + `"`, ""},
		{"one byte more", socket, `driver_name = "` + strings.Repeat("x", 64) + `"`, "agent.csi.driver_name"},
		{"the longest node", socket, `node_id = "` + strings.Repeat("x", 256) + `"`, ""},
		{"one byte more", socket, `node_id = "` + strings.Repeat("x", 257) + `"`, "agent.csi.node_id"},
		{"a relative path", socket, `kubelet_dir = "kubelet"`, "agent.csi.kubelet_dir"},
		{"a path that is not clean", socket, `socket_path = "/x/../csi.sock"`, "agent.csi.socket_path"},
		{"kubelet's socket in what pods get", socket, `socket_path = "/run/credence/agent/public/csi.sock"`, "agent.csi.socket_path"},
		{"the registration in what pods get", socket, `registration_dir = "/run/credence/agent/public"`, "agent.csi.registration_dir"},
		{"kubelet's directory in what pods get", "/var/api.sock", "", "agent.csi.kubelet_dir"},
		{"the keys in what pods get", "/var/lib/credence/api.sock", "", "agent.data_dir"},
		{"the keys are what pods get", "/var/lib/credence/agent/api.sock", "", "agent.data_dir"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			err := csiSection(t, test.socket, test.lines).Validate()
			switch {
			case test.key == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.key != "" && (err == nil || !strings.Contains(err.Error(), test.key)):
				t.Errorf("%v, want a problem of %s", err, test.key)
			}
		})
	}
}

func TestCSIPaths(t *testing.T) {
	t.Parallel()
	c := csiSection(t, "/run/x/api.sock", `driver_name = "csi.example.org"
		kubelet_dir = "/k"
		registration_dir = "/k/plugins_registry"`).Agent.CSI
	if got, want := c.socket(), "/k/plugins/csi.example.org/csi.sock"; got != want {
		t.Errorf("socket %s, want %s", got, want)
	}
	if got, want := c.registration(), "/k/plugins_registry/csi.example.org-reg.sock"; got != want {
		t.Errorf("registration %s, want %s", got, want)
	}
	var none *CSI
	if none.socket() != "" || none.registration() != "" {
		t.Error("no section has sockets")
	}
}

// TestCSIPreflight: files are looked at before the agent starts.
func TestCSIPreflight(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	kubelet := filepath.Join(dir, "kubelet")
	taken := filepath.Join(dir, "taken")
	if err := os.WriteFile(taken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := csiSection(t, filepath.Join(dir, "public", "api.sock"), `kubelet_dir = "`+kubelet+`"
		socket_path = "`+taken+`"`)
	c.Agent.DataDir = dir + "/data"
	problems := c.Preflight()
	for _, key := range []string{"agent.csi.kubelet_dir", "agent.csi.socket_path"} {
		if problems == nil || !strings.Contains(problems.Error(), key) {
			t.Errorf("%v, want a problem of %s", problems, key)
		}
	}
	if err := os.MkdirAll(filepath.Join(kubelet, "pods"), 0o700); err != nil {
		t.Fatal(err)
	}
	c.Agent.CSI.SocketPath = filepath.Join(dir, "csi.sock")
	if err := c.Preflight(); err != nil {
		t.Error(err)
	}
}
