package shape

import (
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A layer may import every layer below it. Inside a layer, a room may import
// another only if siblings says so.
type layer struct {
	name  string
	rooms []string // patterns of path.Match
}

// layers is the picture of the rooms, from the top down.
var layers = []layer{
	{"tests", []string{"test/*", "test/*/*"}},
	{"programs", []string{"cmd/server", "cmd/agent", "cmd/controller"}},
	{"assemblies", []string{"pkg/server", "pkg/agent", "pkg/console", "pkg/kube"}},
	{"services", []string{"pkg/server/*", "pkg/agent/*", "pkg/federation", "pkg/sts", "pkg/oidc", "pkg/publish", "pkg/publish/*"}},
	{"decisions", []string{"pkg/ca", "pkg/entitle", "pkg/policy"}},
	{"implementations", []string{
		"pkg/registry", "pkg/registry/*", "pkg/store/*", "pkg/store/etcd/etcdtest", "pkg/keys/*", "pkg/ca/upstream/*",
		"pkg/attest/node/*", "pkg/attest/workload/*", "pkg/plugin", "pkg/kubeclient", "pkg/kubeclient/kubetest",
	}},
	{"contracts", []string{
		"pkg/store", "pkg/svid", "pkg/keys", "pkg/ca/upstream",
		"pkg/attest", "pkg/attest/node", "pkg/attest/workload", "proto/*/v1",
	}},
	{"leaves", []string{
		"pkg/audit", "pkg/telemetry", "pkg/config", "pkg/cli", "pkg/atomicfile", "pkg/unixsock", "pkg/preflight", "pkg/config/configtest",
		"pkg/ratelimit", "pkg/connlimit", "pkg/tlspolicy", "pkg/importer", "pkg/manifest", "pkg/retry",
	}},
}

// siblings are the imports allowed inside one layer: importer, imported.
var siblings = [][2]string{
	{"test/*", "test/*"},
	{"test/bench", "test/bench/*"},
	{"test/bench/*", "test/bench/*"},
	{"pkg/server/*", "pkg/server/rpcerr"},
	{"pkg/server/apitest", "pkg/server/*"}, // puts rooms together, for tests only
	{"pkg/agent/*", "pkg/agent/*"},
	{"pkg/registry/registrytest", "pkg/registry"},
	{"pkg/registry/registrytest", "pkg/store/*"},
	{"pkg/store/etcd", "pkg/store/dump"},
	{"pkg/store/*", "pkg/store/engine"},
	{"pkg/store/etcd", "pkg/store/etcd/etcdtest"}, // in tests
	{"pkg/ca/upstream", "pkg/svid"},
	{"pkg/ca/upstream", "pkg/keys"},
	{"pkg/attest/node", "pkg/attest"},
	{"pkg/attest/node/x509pop", "pkg/attest/node/agentpath"}, // in tests; the server puts them together
	{"pkg/attest/workload", "pkg/attest"},
	{"pkg/kubeclient", "pkg/attest/node/k8spsat"}, // which has the contract
	{"pkg/publish/*", "pkg/publish"},
	{"pkg/store", "proto/*/v1"},
	{"pkg/telemetry", "pkg/connlimit"},
	{"proto/*/v1", "proto/*/v1"},
}

// never are imports forbidden although the layers would allow them.
var never = [][2]string{
	{"pkg/server", "pkg/agent"},
	{"pkg/agent", "pkg/server"},
	{"pkg/agent", "pkg/store"},
	{"pkg/agent", "pkg/registry"},
	{"pkg/agent", "pkg/ca"},
	{"pkg/agent", "pkg/entitle"},
	{"pkg/agent", "pkg/policy"},
	{"cmd/agent", "pkg/server"},
	{"pkg/console", "pkg/server"},
	{"pkg/console", "pkg/agent"},
	{"pkg/console", "pkg/store"},
	{"pkg/console", "pkg/registry"},
	{"pkg/kube", "pkg/server"},
	{"pkg/kube", "pkg/agent"},
	{"pkg/kube", "pkg/store"},
	{"pkg/kube", "pkg/registry"},
}

func match(pattern, dir string) bool {
	ok, err := path.Match(pattern, dir)
	return ok && err == nil
}

// layerOf is the index of the layer dir is in, -1 for none.
func layerOf(dir string) int {
	return slices.IndexFunc(layers, func(l layer) bool {
		return slices.ContainsFunc(l.rooms, func(p string) bool { return match(p, dir) })
	})
}

// forbidden says why from may not import to; empty: it may.
func forbidden(from, to string) string {
	a, b := layerOf(from), layerOf(to)
	switch {
	case a < 0:
		return from + " is in no layer of test/shape/imports_test.go"
	case b < 0:
		return to + " is in no layer of test/shape/imports_test.go"
	}
	if layers[a].name != "tests" {
		for _, n := range never {
			if under(from, n[0]) && under(to, n[1]) {
				return n[0] + " never imports " + n[1]
			}
		}
	}
	switch {
	case a < b:
		return ""
	case a > b:
		return layers[a].name + " do not import " + layers[b].name + ", which are above"
	}
	for _, s := range siblings {
		if match(s[0], from) && match(s[1], to) {
			return ""
		}
	}
	return "both are " + layers[a].name + ", and siblings does not allow it"
}

func TestImportsPointDown(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		if layerOf(s.dir) < 0 {
			t.Errorf("%s: folder is in no layer of test/shape/imports_test.go", s.path)
			continue
		}
		for _, to := range s.imports() {
			// A test may use any real component, only not of the other side.
			if s.test && !across(s.dir, to) {
				continue
			}
			if why := forbidden(s.dir, to); why != "" {
				t.Errorf("%s imports %s: %s", s.path, to, why)
			}
		}
	}
}

func across(from, to string) bool {
	return under(from, "pkg/server") && under(to, "pkg/agent") || under(from, "pkg/agent") && under(to, "pkg/server")
}

// TestOnlyDevAssemblesBothSides: of cmd/server, only the verb dev has an agent.
func TestOnlyDevAssemblesBothSides(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		if s.dir != "cmd/server" || s.test || strings.HasPrefix(path.Base(s.path), "dev") {
			continue
		}
		for _, to := range s.imports() {
			if under(to, "pkg/agent") {
				t.Errorf("%s imports %s: only dev….go assembles an agent", s.path, to)
			}
		}
	}
}

func TestForbidden(t *testing.T) {
	t.Parallel()
	tests := []struct {
		from, to string
		ok       bool
	}{
		{"pkg/server", "pkg/server/entryapi", true},
		{"pkg/server/entryapi", "pkg/server", false},
		{"pkg/server/entryapi", "pkg/server/agentapi", false},
		{"pkg/server/entryapi", "pkg/server/rpcerr", true},
		{"pkg/agent/workloadapi", "pkg/agent/cache", true},
		{"pkg/agent/cache", "pkg/registry", false},
		{"pkg/agent", "pkg/server", false},
		{"pkg/store", "pkg/store/bolt", false},
		{"pkg/store/bolt", "pkg/store", true},
		{"pkg/registry", "pkg/store/bolt", false},
		{"pkg/telemetry", "pkg/audit", false},
		{"pkg/svid", "pkg/telemetry", true},
		{"cmd/server", "pkg/agent", true},
		{"cmd/agent", "pkg/server", false},
		{"test/integration", "pkg/server", true},
		{"pkg/drawer", "pkg/store", false},
	}
	for _, test := range tests {
		if why := forbidden(test.from, test.to); (why == "") != test.ok {
			t.Errorf("%s imports %s: allowed %v, want %v (%s)", test.from, test.to, why == "", test.ok, why)
		}
	}
}

// TestAgentBinaryStaysSmall: the agent links no store engine, no cloud SDK, no
// typed Kubernetes client. Kubelet's plugin registration is generated messages
// alone, and imports gRPC and protobuf.
func TestAgentBinaryStaysSmall(t *testing.T) {
	t.Parallel()
	const stubs = "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
	unwanted := []string{
		"go.etcd.io", "github.com/aws", "cloud.google.com", "github.com/Azure", "k8s.io",
		module + "/pkg/store", module + "/pkg/registry", module + "/pkg/server", "testing",
	}
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "./cmd/agent")
	cmd.Dir = filepath.FromSlash(root)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	for dep := range strings.FieldsSeq(string(out)) {
		if under(dep, unwanted...) && dep != stubs {
			t.Errorf("cmd/agent links %s", dep)
		}
	}
}
