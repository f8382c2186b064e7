package config

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// subject has a field of every shape the rooms use.
type subject struct {
	TrustDomain string        `hcl:"trust_domain"`
	BindPort    int           `hcl:"bind_port"`
	CATTL       time.Duration `hcl:"ca_ttl"`
	LogLevel    string        `hcl:"log_level"`
	AuditLog    *bool         `hcl:"audit_log_enabled"`
	Ratio       float64       `hcl:"ratio"`
	Limit       uint8         `hcl:"limit"`
	AdminIDs    []string      `hcl:"admin_ids"`
	CASubject   *struct {
		Country    []string `hcl:"country"`
		CommonName string   `hcl:"common_name"`
	} `hcl:"ca_subject"`
	Federation struct {
		With map[string]struct {
			URL     string              `hcl:"url"`
			Profile map[string]struct{} `hcl:"profile"`
		} `hcl:"federates_with"`
	} `hcl:"federation"`
	Listeners []struct {
		Name string `hcl:"name"`
	} `hcl:"listener"`
	Address netip.Addr `hcl:"address"`
	embedded
	Ignored func()
}

type embedded struct {
	DataDir string `hcl:"data_dir"`
}

type document struct {
	Server  subject `hcl:"server"`
	Plugins Plugins `hcl:"plugins"`
}

const everyShape = `
# A comment, and commas where SPIRE allows them.
server {
  trust_domain = "example.org",
  bind_port = "8081"
  CA_TTL = "1h30m"
  audit_log_enabled = false
  ratio = 0.5
  limit = 255
  admin_ids = ["spiffe://example.org/a", "spiffe://example.org/b",]
  ca_subject = { country = ["US"], common_name = "x" }
  federation {
    federates_with "a.org" { url = "https://a" profile "web" {} }
    federates_with "b.org" { url = "https://b" }
  }
  listener { name = "one" }
  listener { name = "two" }
  address = "10.0.0.1"
  data_dir = <<EOT
/var/lib
EOT
}
plugins {
  KeyManager "memory" { plugin_data {} }
  NodeAttestor "join_token" { plugin_data = {} }
  NodeAttestor "mine" { plugin_cmd = "/bin/mine" plugin_args = ["-x"] plugin_checksum = "aa" enabled = "false" }
}
`

func wantEveryShape() subject {
	no := false
	var s subject
	s.TrustDomain, s.BindPort, s.CATTL, s.AuditLog = "example.org", 8081, 90*time.Minute, &no
	s.Ratio, s.Limit, s.DataDir = 0.5, 255, "/var/lib\n"
	s.AdminIDs = []string{"spiffe://example.org/a", "spiffe://example.org/b"}
	s.CASubject = &struct {
		Country    []string `hcl:"country"`
		CommonName string   `hcl:"common_name"`
	}{[]string{"US"}, "x"}
	s.Federation.With = map[string]struct {
		URL     string              `hcl:"url"`
		Profile map[string]struct{} `hcl:"profile"`
	}{
		"a.org": {URL: "https://a", Profile: map[string]struct{}{"web": {}}},
		"b.org": {URL: "https://b"},
	}
	s.Listeners = []struct {
		Name string `hcl:"name"`
	}{{"one"}, {"two"}}
	s.Address = netip.MustParseAddr("10.0.0.1")
	return s
}

var compare = cmp.Options{
	cmp.AllowUnexported(subject{}, embedded{}),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

func TestDecodeEveryShape(t *testing.T) {
	t.Parallel()
	file, err := Parse("server.conf", []byte(everyShape))
	if err != nil {
		t.Fatal(err)
	}
	var got document
	if err := file.Decode(&got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantEveryShape(), got.Server, compare); diff != "" {
		t.Errorf("server (-want +got):\n%s", diff)
	}
	type plugin struct {
		Type, Name, Cmd, Checksum string
		Args                      []string
		Enabled, Data             bool
	}
	var plugins []plugin
	for _, p := range got.Plugins {
		plugins = append(plugins, plugin{p.Type, p.Name, p.Cmd, p.Checksum, p.Args, p.Enabled, p.Data.IsSet()})
	}
	want := []plugin{
		{Type: "KeyManager", Name: "memory", Enabled: true, Data: true},
		{Type: "NodeAttestor", Name: "join_token", Enabled: true, Data: true},
		{Type: "NodeAttestor", Name: "mine", Cmd: "/bin/mine", Checksum: "aa", Args: []string{"-x"}},
	}
	if diff := cmp.Diff(want, plugins); diff != "" {
		t.Errorf("plugins (-want +got):\n%s", diff)
	}
	if got := got.Plugins.OfType("NodeAttestor"); len(got) != 1 || got[0].Name != "join_token" {
		t.Errorf("OfType must leave out the disabled one, got %v", got)
	}
}

func TestDecodeReportsAllProblemsWithLineAndKey(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, in string
		want     []string
	}{
		{"unknown keys, nearest named", "server {\n  trust_domian = \"x\"\n  zzzzzzz = 1\n}\nsrever {}\n", []string{
			`f.conf:2: server.trust_domian: unknown key; did you mean "trust_domain"?`,
			`f.conf:3: server.zzzzzzz: unknown key`,
			`f.conf:5: srever: unknown key; did you mean "server"?`,
		}},
		{"wrong types", "server {\n  bind_port = \"web\"\n  ca_ttl = 60\n  admin_ids = \"a\"\n  ca_subject = 3\n  limit = 256\n  log_level = true\n  audit_log_enabled = \"maybe\"\n  ratio = []\n  listener = 1\n  address = \"nowhere\"\n}", []string{
			`f.conf:2: server.bind_port: expected a whole number of 64 bits, got a text`,
			`f.conf:3: server.ca_ttl: expected a duration in quotes, such as "1h" or "90s"`,
			`f.conf:7: server.log_level: expected a text, got true or false`,
			`f.conf:8: server.audit_log_enabled: expected true or false, got a text`,
			`f.conf:9: server.ratio: expected a number, got a list`,
			`f.conf:6: server.limit: expected a whole number of 8 bits, not negative, got a number`,
			`f.conf:4: server.admin_ids: expected a list, got a text`,
			`f.conf:5: server.ca_subject: expected a section, got a number`,
			`f.conf:10: server.listener: expected a list, got a number`,
			`f.conf:11: server.address: ParseAddr("nowhere"): unable to parse IP`,
		}},
		{"wrong element", `server { admin_ids = ["a", {}] }`, []string{
			`f.conf:1: server.admin_ids[1]: expected a text, got a section`,
		}},
		{"section twice", "server {}\nserver {}\n", []string{`f.conf:2: server: key is set twice; it is also on line 1`}},
		{"two sections in a list", `{"server": [{}, {}]}`, []string{`f.conf:1: server: section is set twice; it is also on line 1`}},
		{"key twice in JSON", "{\"server\": {\"log_level\": \"a\",\n\"log_level\": \"b\"}}", []string{
			`f.conf:2: server.log_level: key is set twice; it is also on line 1`,
		}},
		{"map key twice", "server { federation {\nfederates_with \"a\" {}\nfederates_with \"a\" {}\n} }", []string{
			`f.conf:3: server.federation.federates_with.a: key is set twice; it is also on line 2`,
		}},
		{"plugin twice", "plugins {\nKeyManager \"a\" {}\nKeyManager \"a\" {}\n}", []string{
			`f.conf:3: plugins.KeyManager.a: plugin is configured twice; it is also on line 2`,
		}},
		{"plugin keys", "plugins {\nKeyManager \"a\" { plugin_dat {} }\nKeyManager \"b\" { plugin_checksum = \"c\" }\nKeyManager = 1 }", []string{
			`f.conf:2: plugins.KeyManager.a.plugin_dat: unknown key; did you mean "plugin_data"?`,
			`f.conf:3: plugins.KeyManager.b: plugin_checksum and plugin_args need plugin_cmd`,
			`f.conf:4: plugins.KeyManager: expected a section, got a number`,
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			file, err := Parse("f.conf", []byte(test.in))
			if err != nil {
				t.Fatal(err)
			}
			var got document
			err = file.Decode(&got)
			if err == nil {
				t.Fatal("no error")
			}
			problems := strings.Split(err.Error(), "\n")
			slices.Sort(problems)
			slices.Sort(test.want)
			if diff := cmp.Diff(test.want, problems); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3tcanary"
	tests := []struct{ name, in, want string }{
		{"unclosed section", "server {\n", "f.conf:2: object expected closing RBRACE got: EOF"},
		{"unquoted value", "server {\n log_level = " + secret + "\n}", "f.conf:2: expected a value: text in double quotes, a number, true, false, [ or {"},
		{"forgotten equals sign", "server {\n join_token \"" + secret + "\"\n}", "f.conf:3: expected = or { after a key"},
		{"unquoted in a list", "a = [" + secret + "]", "f.conf:1: unexpected token while parsing list: IDENT"},
		{"argument twice", "a = 1\na = 2\n", "f.conf:2: a: key is set twice"},
		{"argument twice, in quotes", "s {\n \"a\" = 1\n \"a\" = 2\n}", "f.conf:3: a: key is set twice"},
		{"unclosed JSON", "{\n\"server\": {\n", "f.conf:2: file ends too early: a closing brace or bracket is missing"},
		{"bad JSON", "{\n\"server\" 1}", "f.conf:2: invalid character '1' after object key"},
		{"two JSON objects", "{}\n{}", "f.conf:2: something follows the closing brace of the file"},
		{"deep", strings.Repeat("a {", maxDepth+1), "f.conf: sections are nested deeper than 500"},
		{"large", strings.Repeat("#", maxSize+1), "f.conf: file is larger than 4194304 bytes"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := Parse("f.conf", []byte(test.in))
			if err == nil {
				t.Fatal("no error")
			}
			if diff := cmp.Diff(test.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if strings.Contains(err.Error(), secret) {
				t.Error("the error repeats a value")
			}
		})
	}
}

// TestChartFiles decodes the files that the Helm chart writes.
func TestChartFiles(t *testing.T) {
	t.Parallel()
	type cluster struct {
		ServiceAccounts []string `hcl:"service_account_allow_list"`
		Audience        []string `hcl:"audience"`
		NodeLabels      []string `hcl:"allowed_node_label_keys"`
		PodLabels       []string `hcl:"allowed_pod_label_keys"`
	}
	type chart struct {
		Server  Raw     `hcl:"server"`
		Agent   Raw     `hcl:"agent"`
		Plugins Plugins `hcl:"plugins"`
		Health  struct {
			Enabled bool   `hcl:"listener_enabled"`
			Address string `hcl:"bind_address"`
			Port    string `hcl:"bind_port"`
			Live    string `hcl:"live_path"`
			Ready   string `hcl:"ready_path"`
		} `hcl:"health_checks"`
	}
	load := func(t *testing.T, name string) chart {
		t.Helper()
		file, err := Load(filepath.Join("testdata", name), true)
		if err != nil {
			t.Fatal(err)
		}
		var c chart
		if err := file.Decode(&c); err != nil {
			t.Fatal(err)
		}
		return c
	}

	server := load(t, "chart-server.json")
	var body struct {
		BindPort  int           `hcl:"bind_port"`
		CATTL     time.Duration `hcl:"ca_ttl"`
		CASubject struct {
			CommonName string `hcl:"common_name"`
		} `hcl:"ca_subject"`
	}
	err := server.Server.Decode(&body)
	if err == nil || !strings.Contains(err.Error(), "server.trust_domain: unknown key") {
		t.Errorf("Raw.Decode must be strict too, got %v", err)
	}
	if body.BindPort != 8081 || body.CATTL != 24*time.Hour || body.CASubject.CommonName != "example.org" {
		t.Errorf("server = %+v", body)
	}
	var psat struct {
		Clusters map[string]cluster `hcl:"clusters"`
	}
	if err := server.Plugins.OfType("NodeAttestor")[0].Decode(&psat); err != nil {
		t.Fatal(err)
	}
	want := map[string]cluster{"example-cluster": {
		ServiceAccounts: []string{"default:t-agent"}, Audience: []string{"spire-server"},
		NodeLabels: []string{}, PodLabels: []string{},
	}}
	if diff := cmp.Diff(want, psat.Clusters); diff != "" {
		t.Errorf("clusters (-want +got):\n%s", diff)
	}

	agent := load(t, "chart-agent.json")
	if agent.Health.Port != "9982" || !agent.Health.Enabled {
		t.Errorf("health_checks = %+v", agent.Health)
	}
	memory := agent.Plugins.OfType("KeyManager")[0]
	if memory.Name != "memory" || memory.Data.IsSet() {
		t.Errorf("plugin_data: null must be unset, got %+v", memory)
	}
	if err := memory.Decode(&struct{}{}); err != nil {
		t.Errorf("decoding plugin_data null: %v", err)
	}
}

func TestLoadExpandsOnlyWhenAsked(t *testing.T) {
	t.Setenv("CREDENCE_TEST_TD", "td.example")
	path := filepath.Join(t.TempDir(), "f.conf")
	if err := os.WriteFile(path, []byte(`server { trust_domain = "${CREDENCE_TEST_TD}" log_level = "$CREDENCE_TEST_TD$$x${CREDENCE_TEST_UNSET}" }`), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		expand               bool
		trustDomain, logText string
	}{
		{true, "td.example", "td.example$x"},
		{false, "${CREDENCE_TEST_TD}", "$CREDENCE_TEST_TD$$x${CREDENCE_TEST_UNSET}"},
	}
	for _, test := range tests {
		file, err := Load(path, test.expand)
		if err != nil {
			t.Fatal(err)
		}
		var got document
		if err := file.Decode(&got); err != nil {
			t.Fatal(err)
		}
		if got.Server.TrustDomain != test.trustDomain || got.Server.LogLevel != test.logText {
			t.Errorf("expand %v: %q, %q", test.expand, got.Server.TrustDomain, got.Server.LogLevel)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none"), false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func TestPluginDecodeFromFile(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data.conf")
	if err := os.WriteFile(data, []byte(`keys_path = "/k"`), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := Parse("f.conf", []byte(`plugins {
		KeyManager "disk" { plugin_data_file = "`+data+`" }
		KeyManager "both" { plugin_data_file = "x" plugin_data {} }
		KeyManager "gone" { plugin_data_file = "/nonexistent" }
	}`))
	if err != nil {
		t.Fatal(err)
	}
	var doc document
	if err := file.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	var body struct {
		KeysPath string `hcl:"keys_path"`
	}
	if err := doc.Plugins[0].Decode(&body); err != nil || body.KeysPath != "/k" {
		t.Errorf("plugin_data_file: %q, %v", body.KeysPath, err)
	}
	for i, want := range map[int]string{
		1: "f.conf:3: plugins.KeyManager.both: plugin_data and plugin_data_file are both set; keep one",
		2: "f.conf:4: plugins.KeyManager.gone: plugin_data_file: reading configuration: open /nonexistent: no such file or directory",
	} {
		if err := doc.Plugins[i].Decode(&body); err == nil || err.Error() != want {
			t.Errorf("plugin %d: got %v, want %s", i, err, want)
		}
	}
}

func TestPluginsCheck(t *testing.T) {
	t.Parallel()
	file, err := Parse("f.conf", []byte(`plugins {
		KeyManager "disc" {}
		KeyManger "disk" {}
		KeyManager "own" { plugin_cmd = "/x" }
		KeyManager "memory" {}
	}`))
	if err != nil {
		t.Fatal(err)
	}
	var doc document
	if err := file.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	err = doc.Plugins.Check(map[string][]string{"KeyManager": {"disk", "memory"}}, nil)
	want := `f.conf:2: plugins.KeyManager.disc: there is no built-in KeyManager "disc"; did you mean "disk"?
f.conf:3: plugins.KeyManger.disk: unknown plugin type "KeyManger"; did you mean "KeyManager"?`
	if err == nil || err.Error() != want {
		t.Errorf("Check = %v, want %s", err, want)
	}
}

func TestDecodeRefusesWrongTarget(t *testing.T) {
	t.Parallel()
	file, err := Parse("f.conf", []byte(`a = 1`))
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []any{nil, document{}, (*document)(nil), new(string)} {
		if err := file.Decode(target); err == nil {
			t.Errorf("Decode(%T) succeeded", target)
		}
	}
	if err := file.Decode(&struct {
		A chan int `hcl:"a"`
	}{}); err == nil || !strings.Contains(err.Error(), "cannot be decoded into a Go chan int") {
		t.Errorf("Decode into a channel: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(everyShape))
	for _, name := range []string{"chart-server.json", "chart-agent.json"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(_ *testing.T, data []byte) {
		file, err := Parse("fuzz", data)
		if err != nil {
			return
		}
		_ = file.Errorf("server.federation.federates_with.a[1].b", "x")
		var doc document
		if err := file.Decode(&doc); err != nil {
			return
		}
		_, _ = Unsupported(file, "", doc)
		later := []Later{{Type: "KeyManager", Name: "memory", Keys: "a{*{b}} c"}, {Type: "NodeAttestor", Name: "join_token", Keys: "*"}}
		_ = doc.Plugins.Check(map[string][]string{"KeyManager": {"disk"}}, later)
		for _, p := range doc.Plugins {
			if p.DataFile == "" {
				_ = p.Decode(&doc.Server)
			}
		}
	})
}
