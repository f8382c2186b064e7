package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/cli"
	agentstatev1 "github.com/credence-id/credence/proto/agentstate/v1"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"
)

// call runs the command line.
func call(ctx context.Context, args ...string) (code int, said string) {
	var out, errs bytes.Buffer
	p := cli.Persona{}
	code = cli.Run(ctx, p, root(p), args, cli.Streams{In: strings.NewReader(""), Out: &out, Err: &errs})
	return code, errs.String()
}

// place is where the configurations of one test have their files.
type place struct{ dir string }

func newPlace(t *testing.T) place {
	t.Helper()
	dir, err := os.MkdirTemp("", "agt") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := place{dir: dir}
	p.write(t, "bundle.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate(t, time.Hour)})), 0o600)
	return p
}

// keep writes what an agent keeps that has had its first contact.
func (p place) keep(t *testing.T, lives time.Duration) {
	t.Helper()
	state, err := proto.Marshal(&agentstatev1.State{StoreId: "x", Revision: 1, Bundles: []*feedv1.BundleState{{Bundle: &types.Bundle{
		TrustDomain: "validate.test", X509Authorities: []*types.X509Certificate{{Asn1: certificate(t, lives)}},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, "data/agent-state.pb", string(state), 0o600)
}

// certificate is one that signs itself, DER.
func certificate(t *testing.T, lives time.Duration) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(lives), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (p place) path(name string) string { return filepath.Join(p.dir, name) }

func (p place) write(t *testing.T, name, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(p.path(name)), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.path(name), []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(p.path(name), mode); err != nil {
		t.Fatal(err)
	}
	return p.path(name)
}

const (
	usualBundle  = `trust_bundle_path = "@DIR@/bundle.pem"`
	usualPlugins = `KeyManager "memory" {} NodeAttestor "join_token" {} WorkloadAttestor "unix" {}`
)

// conf is a configuration of an agent whose server does not answer.
func (p place) conf(bundle, agent, plugins, rest string) string {
	text := fmt.Sprintf(`agent {
	trust_domain = "validate.test"
	data_dir = "@DIR@/data"
	socket_path = "@DIR@/api.sock"
	server_address = "127.0.0.1"
	server_port = 1
	log_file = "@DIR@/log"
	%s
	%s
}
plugins {
	%s
}
%s`, bundle, agent, plugins, rest)
	return strings.ReplaceAll(text, "@DIR@", p.dir)
}

// TestRunRefusesWhatValidateRefuses: over a corpus of configurations, good and
// bad, run ends at once if and only if validate says why, and with the same
// words; and every problem has its file and line.
func TestRunRefusesWhatValidateRefuses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		bundle, agent, plugins, rest string
		text                         string // in the place of all that
		prepare                      func(t *testing.T, p place)
		args                         []string
		want                         string // in what is said; empty: good
	}{
		"good":                      {},
		"good, disk":                {plugins: `KeyManager "disk" {} NodeAttestor "join_token" {} WorkloadAttestor "unix" {}`},
		"good, insecure":            {bundle: "insecure_bootstrap = true"},
		"good, URL":                 {bundle: `trust_bundle_url = "https://127.0.0.1:1/x"`},
		"good, URL on a socket":     {bundle: `trust_bundle_url = "http://x/y?a=b" trust_bundle_unix_socket = "/nowhere"`},
		"good, Workload API":        {bundle: `trust_bundle_spiffe_workload_api = "unix:///nowhere"`},
		"good, after the flags":     {agent: `log_level = "loud"`, args: []string{"-logLevel", "debug"}},
		"good, with empty flags":    {args: []string{"-trustDomain", "", "-serverPort", "0", "-rebootstrapDelay", "0s"}},
		"good, since first contact": {bundle: `trust_bundle_path = "/nowhere"`, prepare: func(t *testing.T, p place) { p.keep(t, time.Hour) }},
		"good, pods":                {plugins: `KeyManager "memory" {} NodeAttestor "join_token" {} WorkloadAttestor "k8s" {}`},
		"good, accepted keys":       {agent: `log_selectors = ["unix:uid"] experimental { sync_interval = "5s" use_sync_authorized_entries = false }`},

		"flag":              {args: []string{"-logLevel", "loud"}, want: "-logLevel: agent.log_level: "},
		"flag of the mode":  {args: []string{"-rebootstrapMode", "often"}, want: "-rebootstrapMode: agent.rebootstrap_mode"},
		"flag of a file":    {args: []string{"-joinTokenFile", "/nowhere"}, want: "-joinTokenFile: agent.join_token_file"},
		"broken":            {text: "agent {", want: ":"},
		"unknown key":       {agent: `sync_intervall = 1`, want: ":9: agent.sync_intervall: unknown key"},
		"required":          {text: "agent {\n}\nplugins { " + usualPlugins + "\n}", want: ":1: agent.trust_domain: is required"},
		"key type":          {agent: `workload_x509_svid_key_type = "rsa-4096"`, want: ":9: agent.workload_x509_svid_key_type"},
		"admin socket":      {agent: `admin_socket_path = "@DIR@/admin/api.sock"`, want: ":9: agent.admin_socket_path"},
		"SDS":               {agent: `sds { default_svid_name = "x" }`, want: ":9: agent.sds: not supported"},
		"delegates":         {agent: `authorized_delegates = ["spiffe://validate.test/x"]`, want: ":9: agent.authorized_delegates: not supported"},
		"availability":      {agent: `availability_target = "23h"`, want: ":9: agent.availability_target: 23h0m0s is less than 24h"},
		"broker":            {agent: `experimental { broker { brokers = [{ id = "x" }] } }`, want: ":9: agent.experimental.broker: not supported"},
		"broker, misspelt":  {agent: `experimental { broker { brokers = [{ di = "x" }] } }`, want: "agent.experimental.broker.brokers[0].di: unknown key; did you mean \"id\"?"},
		"sync interval":     {agent: `experimental { sync_interval = "1ms" }`, want: ":9: agent.experimental.sync_interval: 1ms is less than 1s"},
		"named pipe":        {agent: `experimental { admin_named_pipe_name = "x" }`, want: ":9: agent.experimental.admin_named_pipe_name"},
		"tokens":            {agent: `join_token = "x" join_token_file = "y"`, want: ":9: agent.join_token_file: is exclusive"},
		"token's file":      {agent: `join_token_file = "/nowhere"`, want: ":9: agent.join_token_file"},
		"token's file, bad": {agent: `join_token_file = "@DIR@/token"`, prepare: func(t *testing.T, p place) { p.write(t, "token", " \n", 0o600) }, want: "is empty"},

		"no bundle":              {bundle: "# none", want: ":1: agent.trust_bundle_path: is required"},
		"two bundles":            {bundle: usualBundle, agent: "insecure_bootstrap = true", want: ":9: agent.insecure_bootstrap: is exclusive with trust_bundle_path"},
		"bundle kept, expired":   {bundle: `trust_bundle_path = "/nowhere"`, prepare: func(t *testing.T, p place) { p.keep(t, -time.Hour) }, want: ":8: agent.trust_bundle_path"},
		"bundle's file":          {bundle: `trust_bundle_path = "/nowhere"`, want: ":8: agent.trust_bundle_path"},
		"bundle is none":         {prepare: func(t *testing.T, p place) { p.write(t, "bundle.pem", "x", 0o600) }, want: "no PEM"},
		"bundle of another kind": {agent: `trust_bundle_format = "spiffe"`, want: ":8: agent.trust_bundle_path"},
		"bundle's format":        {agent: `trust_bundle_format = "der"`, want: ":9: agent.trust_bundle_format"},
		"URL in the clear":       {bundle: `trust_bundle_url = "http://x"`, want: ":8: agent.trust_bundle_url: must begin with https://"},
		"URL of no host":         {bundle: `trust_bundle_url = "https:///x"`, want: ":8: agent.trust_bundle_url"},
		"URL's query":            {bundle: `trust_bundle_url = "http://x?spire-x=1" trust_bundle_unix_socket = "/x"`, want: ":8: agent.trust_bundle_url: its query"},
		"URL on a socket":        {bundle: `trust_bundle_url = "https://x" trust_bundle_unix_socket = "/x"`, want: "must begin with http://"},
		"socket without a URL":   {bundle: usualBundle + ` trust_bundle_unix_socket = "/x"`, want: ":8: agent.trust_bundle_unix_socket"},
		"Workload API":           {bundle: `trust_bundle_spiffe_workload_api = "/x"`, want: ":8: agent.trust_bundle_spiffe_workload_api"},

		"no key manager":       {plugins: `NodeAttestor "join_token" {} WorkloadAttestor "unix" {}`, want: ":11: plugins.KeyManager: 0 are configured"},
		"two node attestors":   {plugins: usualPlugins + "\n" + `NodeAttestor "x509pop" { plugin_data { private_key_path = "x" certificate_path = "x" } }`, want: ":13: plugins.NodeAttestor.x509pop: only one"},
		"later plugin":         {plugins: usualPlugins + "\n" + `WorkloadAttestor "docker" { plugin_data { docker_host = "x" } }`, want: ":13: plugins.WorkloadAttestor.docker: not supported"},
		"later, misspelt":      {plugins: usualPlugins + "\n" + `WorkloadAttestor "docker" { plugin_data { docker_hots = "x" } }`, want: `did you mean "docker_host"?`},
		"SVID store":           {plugins: usualPlugins + "\n" + `SVIDStore "aws_secretsmanager" {}`, want: ":13: plugins.SVIDStore.aws_secretsmanager: not supported"},
		"misspelt plugin":      {plugins: usualPlugins + "\n" + `WorkloadAttestor "unics" {}`, want: `did you mean "unix"?`},
		"external plugin":      {plugins: usualPlugins + "\n" + `WorkloadAttestor "mine" { plugin_cmd = "/bin/true" }`, want: ":13: plugins.WorkloadAttestor.mine"},
		"plugin's data":        {plugins: `KeyManager "disk" { plugin_data { directry = "x" } } NodeAttestor "join_token" {} WorkloadAttestor "unix" {}`, want: ":12: plugins.KeyManager.disk.plugin_data.directry: unknown key"},
		"attestor's data":      {plugins: `KeyManager "memory" {} NodeAttestor "join_token" { plugin_data { x = 1 } } WorkloadAttestor "unix" {}`, want: ":12: plugins.NodeAttestor.join_token.plugin_data.x: unknown key"},
		"pods":                 {plugins: usualPlugins + "\n" + `WorkloadAttestor "k8s" { plugin_data { skip_kublet_verification = true } }`, want: `did you mean "skip_kubelet_verification"?`},
		"pods, nobody to ask":  {plugins: usualPlugins + "\n" + `WorkloadAttestor "k8s" { plugin_data { pod_source = "api_server" node_name_env = "NO_SUCH_VARIABLE" } }`, want: ":13: plugins.WorkloadAttestor.k8s: pod_source: a watch on the API server needs the node's name"},
		"pods, two ports":      {plugins: usualPlugins + "\n" + `WorkloadAttestor "k8s" { plugin_data { kubelet_secure_port = 1 kubelet_read_only_port = 2 } }`, want: ":13: plugins.WorkloadAttestor.k8s: kubelet_read_only_port"},
		"pods, signatures":     {plugins: usualPlugins + "\n" + `WorkloadAttestor "k8s" { plugin_data { sigstore { rekor_url = "x" } } }`, want: ":13: plugins.WorkloadAttestor.k8s.plugin_data.sigstore: not supported"},
		"pods, brokers":        {plugins: usualPlugins + "\n" + `WorkloadAttestor "k8s" { plugin_data { experimental { broker { access_policy = "x" } } } }`, want: ":13: plugins.WorkloadAttestor.k8s.plugin_data.experimental.broker: not supported"},
		"node attestor's data": {plugins: `KeyManager "memory" {} NodeAttestor "x509pop" {} WorkloadAttestor "unix" {}`, want: ":12: plugins.NodeAttestor.x509pop: private_key_path: is required"},

		"keys in no folder":     {plugins: `KeyManager "disk" { plugin_data { directory = "/nowhere" } } NodeAttestor "join_token" {} WorkloadAttestor "unix" {}`, want: ":12: plugins.KeyManager.disk"},
		"profiles' port":        {agent: "profiling_enabled = true profiling_port = 9", rest: `health_checks { listener_enabled = true bind_port = "9" }`, want: ":9: agent.profiling_port: port 9 is that of health_checks.bind_port too"},
		"server with a port":    {text: "agent {\n trust_domain = \"validate.test\"\n server_address = \"server.test:8081\"\n}", want: ":3: agent.server_address: \"server.test:8081\" is neither a host name nor an IP address; a port is for server_port"},
		"bundle's file, SPIFFE": {bundle: `trust_bundle_path = "/nowhere"`, agent: `trust_bundle_format = "spiffe"`, want: "`credence-server bundle show -format spiffe`"},
		"data_dir is a file":    {prepare: func(t *testing.T, p place) { p.write(t, "data", "", 0o600) }, want: ":3: agent.data_dir"},
		"state of everybody":    {prepare: func(t *testing.T, p place) { p.write(t, "data/agent-state.pb", "", 0o644) }, want: "chmod 600"},
		"SVID is none":          {prepare: func(t *testing.T, p place) { p.write(t, "data/agent-svid.json", "x", 0o600) }, want: ":3: agent.data_dir: reading the agent's SVID"},
		"long socket":           {args: []string{"-socketPath", "/tmp/" + strings.Repeat("x", 120)}, want: "-socketPath: agent.socket_path"},
		"log in no folder":      {args: []string{"-logFile", "/nowhere/log"}, want: "-logFile: agent.log_file"},
		"keys are none":         {plugins: `KeyManager "disk" {} NodeAttestor "join_token" {} WorkloadAttestor "unix" {}`, prepare: func(t *testing.T, p place) { p.write(t, "data/keys.json", "x", 0o600) }, want: ":12: plugins.KeyManager.disk"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			if test.prepare != nil {
				test.prepare(t, p)
			}
			if test.bundle == "" {
				test.bundle = usualBundle
			}
			if test.plugins == "" {
				test.plugins = usualPlugins
			}
			text := test.text
			if text == "" {
				text = p.conf(test.bundle, test.agent, test.plugins, test.rest)
			}
			args := append([]string{"-config", p.write(t, "agent.conf", text, 0o600)}, test.args...)
			code, said := call(t.Context(), append([]string{"validate"}, args...)...)
			if again, words := call(t.Context(), append([]string{"validate"}, args...)...); again != code || words != said {
				t.Errorf("the second time it says %d\n%s\nand not %d\n%s", again, words, code, said)
			}
			if (code == 0) != (test.want == "") || !strings.Contains(said, test.want) {
				t.Fatalf("validate ended with %d and said\n%s\nwant %q", code, said, test.want)
			}
			ran, words := p.run(t, args)
			if ran != code || words != said {
				t.Errorf("run ended with %d and said\n%s\nbut validate with %d, and\n%s", ran, words, code, said)
			}
			if _, err := os.Stat(p.path("data/lock")); test.want == "" && err != nil {
				t.Errorf("the agent has not run: %v", err)
			}
			for line := range strings.Lines(said) {
				line = strings.TrimPrefix(line, "Error: ")
				if !strings.HasPrefix(line, p.dir) && !strings.HasPrefix(line, "-") && !strings.HasPrefix(line, "hint: ") {
					t.Errorf("%q has no file", line)
				}
			}
		})
	}
}

// run runs the agent until it is reachable or has ended.
func (p place) run(t *testing.T, args []string) (code int, said string) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	type end struct {
		code int
		said string
	}
	ended := make(chan end, 1)
	go func() {
		code, said := call(ctx, append([]string{"run"}, args...)...)
		ended <- end{code, said}
	}()
	for {
		select {
		case e := <-ended:
			return e.code, e.said
		case <-time.After(10 * time.Millisecond):
			if info, err := os.Lstat(p.path("api.sock")); err == nil && info.Mode().Type() == os.ModeSocket {
				stop()
			}
		}
	}
}
