package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// minimal is the least that a file must have.
const minimal = `
server { trust_domain = "example.org" data_dir = "/nowhere" }
plugins { KeyManager "memory" {} }
`

func load(t *testing.T, text string) (*Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "server.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path, false)
}

func TestLoadMinimal(t *testing.T) {
	t.Parallel()
	c, err := load(t, minimal)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	s := c.Server.withDefaults()
	got := []any{s.address(), s.CATTL, s.DefaultX509SVIDTTL, s.DefaultJWTSVIDTTL, s.AgentTTL, s.CAKeyType, s.JWTKeyType, s.TLSMinVersion, s.CASubject}
	want := []any{"0.0.0.0:8081", 24 * time.Hour, time.Hour, 5 * time.Minute, time.Hour, "ec-p256", "ec-p256", "1.3",
		&CASubject{Country: []string{"US"}, Organization: []string{"SPIFFE"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
	if notices, _ := c.unsupported(); len(notices) != 0 {
		t.Errorf("notices of a minimal file: %v", notices)
	}
}

func TestDefaultsFollow(t *testing.T) {
	t.Parallel()
	s := Settings{CAKeyType: "rsa-2048", DefaultX509SVIDTTL: 2 * time.Hour, BindAddress: "[::1]", BindPort: 1234}.withDefaults()
	got := []any{s.JWTKeyType, s.AgentTTL, s.address()}
	if diff := cmp.Diff([]any{"rsa-2048", 2 * time.Hour, "[::1]:1234"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestValidateNamesTheKey: every mistake is one line that has the key.
func TestValidateNamesTheKey(t *testing.T) {
	t.Parallel()
	server := func(keys string) string {
		return "server {\n trust_domain = \"example.org\"\n data_dir = \"/nowhere\"\n" + keys + "\n}\nplugins { KeyManager \"memory\" {} }"
	}
	plugins := func(text string) string {
		return "server {\n trust_domain = \"example.org\"\n data_dir = \"/nowhere\"\n}\nplugins {\n" + text + "\n}"
	}
	const memory = `KeyManager "memory" {}`
	for name, tc := range map[string]struct {
		text string
		want []string // in the error
	}{
		"nothing":                   {``, []string{"server.trust_domain: is required", "server.data_dir: is required", "plugins.KeyManager: one is required"}},
		"trust domain":              {`server { trust_domain = "NOT VALID" data_dir = "x" } plugins { KeyManager "memory" {} }`, []string{"server.trust_domain"}},
		"unknown key":               {server(`bind_prot = 1`), []string{"server.conf:4", "server.bind_prot", "bind_port"}},
		"port":                      {server(`bind_port = 70000`), []string{"server.bind_port", "65535"}},
		"TLS version":               {server(`tls_min_version = "1.1"`), []string{"server.tls_min_version", "1.3"}},
		"admin ID":                  {server(`admin_ids = ["nobody"]`), []string{"server.admin_ids", "nobody"}},
		"admin of others":           {server(`admin_ids = ["spiffe://other.org/admin"]`), []string{"server.admin_ids", "other.org/admin", "not of the trust domain"}},
		"CA key type":               {server(`ca_key_type = "dsa"`), []string{"server.ca_key_type", "ec-p256"}},
		"JWT key type":              {server(`jwt_key_type = "dsa"`), []string{"server.jwt_key_type", "ec-p256"}},
		"log level":                 {server(`log_level = "loud"`), []string{"server.log_level", "DEBUG"}},
		"log format":                {server(`log_format = "xml"`), []string{"server.log_format", "json"}},
		"negative TTL":              {server(`ca_ttl = "-1h"`), []string{"server.ca_ttl"}},
		"no duration":               {server(`ca_ttl = "soon"`), []string{"server.ca_ttl", "duration"}},
		"federation":                {server(`federation { bundle_endpoint { port = 8443 } }`), []string{"server.federation: not supported", "remove"}},
		"profiling":                 {server(`profiling_enabled = true`), []string{"server.conf:1: server.profiling_port: 0 is not between"}},
		"OPA":                       {server(`experimental { auth_opa_policy_engine { } }`), []string{"server.experimental.auth_opa_policy_engine: not supported"}},
		"feature flags":             {server(`experimental { feature_flags = ["x"] }`), []string{"server.experimental.feature_flags: not supported"}},
		"WIT":                       {server(`experimental { wit_key_type = "ec-p256" wit_issuer = "x" }`), []string{"experimental.wit_key_type", "experimental.wit_issuer"}},
		"agent ID as selector":      {server(`experimental { agent_spiffe_id_as_selector = true }`), []string{"experimental.agent_spiffe_id_as_selector"}},
		"named pipe":                {server(`experimental { named_pipe_name = "x" }`), []string{"experimental.named_pipe_name"}},
		"two key managers":          {plugins(memory + "\nKeyManager \"disk\" {}"), []string{"server.conf:7", "plugins.KeyManager.disk", "only one"}},
		"unknown key manager":       {plugins(`KeyManager "disc" {}`), []string{"plugins.KeyManager.disc", `"disk"`}},
		"unknown type":              {plugins(memory + "\nKeyManger \"disk\" {}"), []string{"KeyManger", "KeyManager"}},
		"unknown node attestor":     {plugins(memory + "\nNodeAttestor \"aws_iid\" {}"), []string{"plugins.NodeAttestor.aws_iid"}},
		"k8s_psat cluster":          {plugins(memory + "\nNodeAttestor \"k8s_psat\" { plugin_data { clusters = { \"c\" = {} } } }"), []string{"plugins.NodeAttestor.k8s_psat", "clusters.c.service_account_allow_list", "spire:spire-agent"}},
		"k8s_configmap format":      {plugins(memory + "\nBundlePublisher \"k8s_configmap\" { plugin_data { clusters = { \"c\" = { format = \"der\" } } } }"), []string{"plugins.BundlePublisher.k8s_configmap", "clusters.c.format", "spiffe, jwks or pem", "clusters.c.namespace"}},
		"k8sbundle clusters":        {plugins(memory + "\nNotifier \"k8sbundle\" { plugin_data { clusters = [ { namespace = \"x\" } ] } }"), []string{"plugins.Notifier.k8sbundle", "clusters[0].kube_config_file_path"}},
		"external plugin":           {plugins(memory + "\nNodeAttestor \"mine\" { plugin_cmd = \"/bin/true\" }"), []string{"plugins.NodeAttestor.mine", "external"}},
		"upstream authority":        {plugins(memory + "\nUpstreamAuthority \"disk\" {}"), []string{"plugins.UpstreamAuthority.disk: not supported"}},
		"postgres":                  {plugins(memory + "\nDataStore \"sql\" { plugin_data { database_type = \"postgres\" } }"), []string{"plugins.DataStore.sql", `"postgres" is not supported`, "bolt"}},
		"unknown plugin data":       {plugins("KeyManager \"disk\" { plugin_data { key_path = \"x\" } }"), []string{"plugins.KeyManager.disk.plugin_data.key_path", "keys_path"}},
		"small ring":                {plugins(memory + "\nDataStore \"bolt\" { plugin_data { ring_bytes = 1 } }"), []string{"plugins.DataStore.bolt", "ring_bytes"}},
		"etcd nowhere":              {plugins(memory + "\nDataStore \"etcd\" {}"), []string{"plugins.DataStore.etcd", "endpoints", "is empty"}},
		"etcd endpoint":             {plugins(memory + "\nDataStore \"etcd\" {\nplugin_data { endpoints = [\"etcd-1:2379\"]\nprefix = \"x\" } }"), []string{"server.conf:8: plugins.DataStore.etcd.plugin_data.endpoints: has", "server.conf:9: plugins.DataStore.etcd.plugin_data.prefix: is"}},
		"etcd passwords":            {plugins(memory + "\nDataStore \"etcd\" { plugin_data { endpoints = [\"http://a:1\"] username = \"me\" password = \"hunter2\" password_file = \"x\" } }"), []string{"plugin_data.password", "keep the file"}},
		"etcd history":              {plugins(memory + "\nDataStore \"etcd\" { plugin_data { endpoints = [\"http://a:1\"] history = \"long\" } }"), []string{"plugin_data.history", "off"}},
		"etcd short history":        {plugins(memory + "\nDataStore \"etcd\" { plugin_data { endpoints = [\"http://a:1\"] history = \"1m\" } }"), []string{"plugin_data.history", "the least is 5m"}},
		"two stores":                {plugins(memory + "\nDataStore \"bolt\" {}\nDataStore \"etcd\" {}"), []string{"plugins.DataStore.etcd", "only one"}},
		"health port":               {minimal + `health_checks { listener_enabled = true bind_port = "x" }`, []string{"health_checks.bind_port"}},
		"metrics port":              {minimal + `telemetry { Prometheus { port = 0 } }`, []string{"telemetry.Prometheus.port"}},
		"negative prune of agents":  {server(`prune_attested_nodes_expired_for = "-1h"`), []string{"server.prune_attested_nodes_expired_for"}},
		"every problem in one go":   {server("bind_port = 70000\n ca_key_type = \"dsa\"\n log_level = \"loud\""), []string{"bind_port", "ca_key_type", "log_level"}},
		"secret is not shown again": {server(`jwt_issuer = { a = "hunter2" }`), []string{"server.jwt_issuer"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := load(t, tc.text)
			if err == nil {
				err = c.Validate()
			}
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in:\n%v", want, err)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a value is repeated:\n%v", err)
			}
			if _, err := New(Config{Server: Settings{}}); err == nil {
				t.Error("New takes what Validate refuses")
			}
		})
	}
}

func TestAcceptedWithNotice(t *testing.T) {
	t.Parallel()
	c, err := load(t, `
server {
	trust_domain = "example.org"
	data_dir = "/nowhere"
	max_attested_node_info_staleness = "5s"
	prune_attested_nodes_batch_size = 10
	disable_jwt_svids = false
	ratelimit { attestation = true signing = false }
	experimental { cache_reload_interval = "5s" events_based_cache = true }
}
plugins {
	KeyManager "disk" { plugin_data { keys_path = "/nowhere/keys.json" } }
	DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "/nowhere/x.sqlite3" max_open_conns = 100 } }
	NodeAttestor "join_token" { plugin_data {} }
	UpstreamAuthority "disk" { enabled = false }
}`)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	srv, err := New(*c)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range srv.notices() {
		got = append(got, n.Key)
	}
	want := []string{
		"server.prune_attested_nodes_batch_size", "server.max_attested_node_info_staleness",
		"server.experimental.cache_reload_interval", "server.experimental.events_based_cache",
		"plugins.DataStore.sql",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestShippedConfigurations loads every file in conf/server, and those of
// conf/etcd.
func TestShippedConfigurations(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../conf/server/*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in conf/server: %v", err)
	}
	three, err := filepath.Glob("../../conf/etcd/*.conf")
	if err != nil || len(three) != 3 {
		t.Fatalf("%d files in conf/etcd: %v", len(three), err)
	}
	files = append(files, three...)
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			t.Parallel()
			c, err := Load(f, true)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Validate(); err != nil {
				t.Error(err)
			}
		})
	}
}
