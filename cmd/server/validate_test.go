package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/cli"
)

// call runs the command line.
func call(ctx context.Context, args ...string) (code int, said string) {
	var out, errs bytes.Buffer
	p := cli.Persona{}
	code = cli.Run(ctx, p, root(p), args, cli.Streams{In: strings.NewReader(""), Out: &out, Err: &errs})
	return code, errs.String()
}

// place is where the configurations of one test have their files.
type place struct {
	dir  string
	port int
}

func newPlace(t *testing.T) place {
	t.Helper()
	dir, err := os.MkdirTemp("", "srv") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	return place{dir: dir, port: lis.Addr().(*net.TCPAddr).Port}
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

// conf is a good configuration with lines added to its section server, and
// with other plugins than its own when there are any.
func (p place) conf(server, plugins, rest string) string {
	if plugins == "" {
		plugins = `KeyManager "disk" {}`
	}
	return fmt.Sprintf(`server {
	trust_domain = "validate.test"
	data_dir = %q
	socket_path = %q
	bind_address = "127.0.0.1"
	bind_port = %d
	log_file = %q
	%s
}
plugins {
	%s
}
%s`, p.path("data"), p.path("api.sock"), p.port, p.path("log"), server, plugins, rest)
}

// TestRunRefusesWhatValidateRefuses: over a corpus of configurations, good and
// bad, run ends at once if and only if validate says why, and with the same
// words; and every problem has its file and line.
func TestRunRefusesWhatValidateRefuses(t *testing.T) {
	t.Parallel()
	memory := `KeyManager "memory" {}` + "\n"
	for name, test := range map[string]struct {
		server, plugins, rest string
		text                  string // in the place of all that
		prepare               func(t *testing.T, p place)
		args                  []string
		want                  string // in what is said; empty: good
	}{
		"good":                         {},
		"good, in memory":              {plugins: memory},
		"good, sqlite3":                {plugins: memory + `DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "/nowhere/x" } }`},
		"good, switched off":           {plugins: memory + `UpstreamAuthority "vault" { enabled = false plugin_data { nonsense = 1 } }`},
		"good, after the flags":        {server: `log_level = "loud"`, args: []string{"-logLevel", "debug"}},
		"good, with empty flags":       {args: []string{"-trustDomain", "", "-serverPort", "0"}},
		"good, with a byte order mark": {text: "\xef\xbb\xbf"},
		"good, SVIDs cut by their CA":  {server: `ca_ttl = "1h" agent_ttl = "48h"`},
		"good, profiles named":         {server: `profiling_names = ["heap"] profiling_freq = 10`},

		"flag":                 {args: []string{"-logLevel", "loud"}, want: "-logLevel: server.log_level: "},
		"flag of a port":       {args: []string{"-serverPort", "70000"}, want: "-serverPort: server.bind_port: 70000"},
		"broken":               {text: "server {", want: ":"},
		"UTF-16":               {text: "\xff\xfes\x00", want: "UTF-8"},
		"unknown key":          {server: `bind_prot = 1`, want: ":8: server.bind_prot: unknown key; did you mean \"bind_port\"?"},
		"wrong type":           {server: `ca_ttl = 5`, want: ":8: server.ca_ttl: expected a duration"},
		"key type":             {server: `ca_key_type = "dsa"`, want: ":8: server.ca_key_type"},
		"JWT key type":         {server: `jwt_key_type = "dsa"`, want: ":8: server.jwt_key_type"},
		"TTL":                  {server: `ca_ttl = "1ms"`, want: ":8: server.ca_ttl"},
		"TLS":                  {server: `tls_min_version = "1.1"`, want: ":8: server.tls_min_version"},
		"admin":                {server: `admin_ids = ["x"]`, want: ":8: server.admin_ids"},
		"log level":            {server: `log_level = "loud"`, want: ":8: server.log_level"},
		"federation":           {server: `federation { bundle_endpoint { port = 1 } }`, want: ":8: server.federation: not supported"},
		"federation, misspelt": {server: `federation { bundle_endpoint { prot = 1 } }`, want: "did you mean \"port\"?"},
		"profiles":             {server: `profiling_enabled = true`, want: "server.profiling_port"},
		"profile's name":       {server: `profiling_enabled = true profiling_port = 1 profiling_names = ["haep"]`, want: ":8: server.profiling_names"},
		"named pipe":           {server: `experimental { named_pipe_name = "x" }`, want: ":8: server.experimental.named_pipe_name"},
		"metrics pushed":       {rest: `telemetry { Statsd = [{ address = "x" }] }`, want: ":13: telemetry.Statsd: not supported"},
		"metrics' port":        {rest: `telemetry { Prometheus { host = "x" } }`, want: ":13: telemetry.Prometheus.port"},
		"health's port":        {rest: `health_checks { listener_enabled = true bind_port = "x" }`, want: ":13: health_checks.bind_port"},

		"health's and metrics' port": {rest: `telemetry { Prometheus { port = 9 } } health_checks { listener_enabled = true bind_address = "0.0.0.0" bind_port = "9" }`,
			want: ":13: telemetry.Prometheus.port: port 9 is that of health_checks.bind_port too; choose another"},
		"key twice": {server: "log_level = \"INFO\"\nlog_level = \"INFO\"", want: ":9: log_level: key is set twice"},

		"no key manager":         {plugins: "# none", want: ":10: plugins.KeyManager: one is required"},
		"two key managers":       {plugins: memory + `KeyManager "disk" {}`, want: ":12: plugins.KeyManager.disk: only one"},
		"later plugin":           {plugins: memory + `NodeAttestor "azure_imds" { plugin_data { tenants = { "x" = { auth_type = "y" } } } }`, want: ":12: plugins.NodeAttestor.azure_imds: not supported"},
		"later plugin, misspelt": {plugins: memory + `NodeAttestor "azure_imds" { plugin_data { tenants = { "x" = { auth_tipe = "y" } } } }`, want: "plugins.NodeAttestor.azure_imds.plugin_data.tenants.x.auth_tipe: unknown key; did you mean \"auth_type\"?"},
		"misspelt plugin":        {plugins: memory + `NodeAttestor "k8s_pasta" {}`, want: `:12: plugins.NodeAttestor.k8s_pasta: there is no built-in NodeAttestor "k8s_pasta"; did you mean "k8s_psat"?`},
		"misspelt type":          {plugins: memory + `NodeAttester "join_token" {}`, want: `did you mean "NodeAttestor"?`},
		"external plugin":        {plugins: memory + `Notifier "mine" { plugin_cmd = "/bin/true" }`, want: ":12: plugins.Notifier.mine: not supported"},
		"plugin's data":          {plugins: `KeyManager "disk" { plugin_data { key_path = "x" } }`, want: ":11: plugins.KeyManager.disk.plugin_data.key_path: unknown key"},
		"plugin's data twice":    {plugins: `KeyManager "disk" { plugin_data {} plugin_data_file = "x" }`, want: "keep one"},
		"plugin's data file":     {plugins: `KeyManager "disk" { plugin_data_file = "/nowhere" }`, want: ":11: plugins.KeyManager.disk: plugin_data_file"},
		"another database":       {plugins: memory + `DataStore "sql" { plugin_data { database_type "aws_mysql" { region = "x" } } }`, want: `:12: plugins.DataStore.sql.plugin_data.database_type: "aws_mysql" is not supported`},
		"node attestor's data":   {plugins: memory + `NodeAttestor "x509pop" { plugin_data { mode = "nonsense" } }`, want: ":12: plugins.NodeAttestor.x509pop"},
		"agent path template":    {plugins: memory + `NodeAttestor "x509pop" { plugin_data { mode = "spiffe" agent_path_template = "/x509pop/{{ .Finger }}" } }`, want: ":12: plugins.NodeAttestor.x509pop.plugin_data.agent_path_template"},
		"node attestor's file":   {plugins: memory + `NodeAttestor "x509pop" { plugin_data { ca_bundle_path = "/nowhere" } }`, want: ":12: plugins.NodeAttestor.x509pop"},

		"data_dir is a file":  {prepare: func(t *testing.T, p place) { p.write(t, "data", "", 0o600) }, want: ":3: server.data_dir"},
		"log in no folder":    {args: []string{"-logFile", "/nowhere/log"}, want: "-logFile: server.log_file"},
		"long socket":         {args: []string{"-socketPath", "/tmp/" + strings.Repeat("x", 120)}, want: "-socketPath: server.socket_path"},
		"socket is a file":    {prepare: func(t *testing.T, p place) { p.write(t, "api.sock", "", 0o600) }, want: ":4: server.socket_path"},
		"store is none":       {prepare: func(t *testing.T, p place) { p.write(t, "data/credence.db", strings.Repeat("x", 9000), 0o600) }, want: "plugins.DataStore"},
		"keys are none":       {prepare: func(t *testing.T, p place) { p.write(t, "data/keys.json", "x", 0o600) }, want: "plugins.KeyManager.disk"},
		"keys in no folder":   {plugins: `KeyManager "disk" { plugin_data { keys_path = "/nowhere/keys.json" } }`, want: ":11: plugins.KeyManager.disk.plugin_data.keys_path"},
		"server's ID is none": {prepare: func(t *testing.T, p place) { p.write(t, "data/server_id", "x", 0o600) }, want: ":3: server.data_dir: reading the server's ID"},
		"keys of everybody":   {prepare: func(t *testing.T, p place) { p.write(t, "data/keys.json", "{}", 0o644) }, want: "0644"},
		"SPIRE's data":        {prepare: func(t *testing.T, p place) { p.write(t, "data/journal.pem", "x", 0o600) }, want: "server.data_dir"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			if test.prepare != nil {
				test.prepare(t, p)
			}
			text := test.text
			if text == "" || test.want == "" {
				text += p.conf(test.server, test.plugins, test.rest)
			}
			args := append([]string{"-config", p.write(t, "server.conf", text, 0o600)}, test.args...)
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
			if _, err := os.Stat(p.path("data/credence.db")); test.want == "" && err != nil {
				t.Errorf("the server has not run: %v", err)
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

// run runs the server until it is reachable or has ended.
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
			if info, err := os.Lstat(p.path("api.sock")); err != nil || info.Mode().Type() != os.ModeSocket {
				continue
			}
			if code, _ := call(ctx, "healthcheck", "-socketPath", p.path("api.sock")); code == 0 {
				stop()
			}
		}
	}
}

// TestValidateStatic takes a configuration for another machine.
func TestValidateStatic(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	conf := p.write(t, "server.conf", p.conf("", `KeyManager "disk" {}
	NodeAttestor "x509pop" { plugin_data { ca_bundle_path = "/nowhere/ca.pem" } }`, ""), 0o600)
	if code, said := call(t.Context(), "validate", "-config", conf); code != 1 || !strings.Contains(said, "/nowhere/ca.pem") {
		t.Errorf("on this machine: %d, %s", code, said)
	}
	if code, said := call(t.Context(), "validate", "-static", "-config", conf); code != 0 {
		t.Errorf("for another: %d, %s", code, said)
	}
}
