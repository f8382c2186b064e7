package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestErrorfFindsTheLine(t *testing.T) {
	t.Parallel()
	file, err := Parse("f.conf", []byte(`server {
  bind_port = 1
  federation {
    federates_with "partner.example" {
      url = "x"
    }
  }
  brokers = [
    { id = "a" },
    { id = "b" }
  ]
}
plugins {
  KeyManager "disk" {
    plugin_data {
      keys_path = "x"
    }
  }
}
`))
	if err != nil {
		t.Fatal(err)
	}
	for key, line := range map[string]int{
		"server": 1, "server.bind_port": 2, "SERVER.BIND_PORT": 2,
		"server.missing": 1, "server.federation.missing": 3, "missing": 0, "telemetry.Prometheus": 0,
		"server.federation.federates_with.partner.example.url": 5, "server.federation.federates_with.partner.example": 4,
		"server.federation.federates_with.partner": 4, // of the section that could have it
		"server.brokers[1].id":                     10, "server.brokers[7].id": 8, "server.brokers[x]": 1,
		"plugins.KeyManager.disk.plugin_data.keys_path": 16, "plugins.KeyManager.memory": 14, "plugins.NodeAttestor": 13,
		"": 0,
	} {
		want := fmt.Sprintf("f.conf:%d: %s: is wrong", line, key)
		if line == 0 {
			want = "f.conf: " + key + ": is wrong"
		}
		if key == "" {
			want = "f.conf: is wrong"
		}
		if got := file.Errorf(key, "is wrong").Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	file.Override("server.bind_port", "-serverPort")
	if got, want := file.Errorf("server.bind_port", "%d is wrong", 2).Error(), "-serverPort: server.bind_port: 2 is wrong"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := (*File)(nil).Errorf("a.b", "is wrong").Error(), "a.b: is wrong"; got != want {
		t.Errorf("without a file: %q, want %q", got, want)
	}
	if sentinel := errors.New("x"); !errors.Is(file.Errorf("a", "%w", sentinel), sentinel) {
		t.Error("what a problem wraps is lost")
	}
}

func TestProblems(t *testing.T) {
	t.Parallel()
	at := func(file string, line int, key string) error {
		return &Problem{File: file, Line: line, Key: key, Err: errors.New("bad")}
	}
	unread := &Problem{File: "f", Line: 9, Key: "s.typed", Err: errors.New("expected a number"), lost: "s.typed", read: true}
	misspelt := &Problem{File: "f", Line: 8, Key: "s.servr", Err: errors.New("unknown key"), lost: "s.server", read: true}
	err := Problems(
		nil, at("f", 10, "s.last"), errors.Join(at("f", 2, "s.b"), nil, errors.Join(at("f", 2, "s.a"), at("f", 10, "s.last"))),
		at("-flag", 0, "s.flag"), errors.New("nowhere"), unread, misspelt,
		at("f", 9, "s.typed"), at("f", 1, "s.server"), at("f", 1, "s.server.below"), at("f", 1, "s.server2"),
	)
	want := []string{
		"nowhere", "-flag: s.flag: bad", "f:1: s.server2: bad", "f:2: s.a: bad", "f:2: s.b: bad",
		"f:8: s.servr: unknown key", "f:9: s.typed: expected a number", "f:10: s.last: bad",
	}
	if diff := cmp.Diff(want, strings.Split(err.Error(), "\n")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if err := Problems(nil, errors.Join(), Problems()); err != nil {
		t.Errorf("of nothing: %v", err)
	}
}

func TestByteOrderMark(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"a = 1", `{"a": 1}`} {
		var into struct {
			A int `hcl:"a"`
		}
		file, err := Parse("f", []byte("\xef\xbb\xbf"+text))
		if err == nil {
			err = file.Decode(&into)
		}
		if err != nil || into.A != 1 {
			t.Errorf("%q: %d, %v", text, into.A, err)
		}
	}
	for _, text := range []string{"\xff\xfea\x00", "\xfe\xff\x00a"} {
		if _, err := Parse("f", []byte(text)); err == nil || err.Error() != "f: file is UTF-16: save it as UTF-8" {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// tagged has a field of every shape that the tags are used on.
type tagged struct {
	Port    int           `hcl:"port" default:"8081"`
	TTL     time.Duration `hcl:"ttl" default:"90s"`
	Name    string        `hcl:"name" default:"n"`
	Quiet   bool          `hcl:"quiet" refused:"no"`
	List    []string      `hcl:"list" refused:"no"`
	Section *struct {
		Inner string `hcl:"inner" default:"i"`
	} `hcl:"section" accepted:"maybe"`
	Deep struct {
		Inner  *bool `hcl:"inner" accepted:"maybe"`
		Deeper struct {
			Raw Raw `hcl:"raw" refused:"no"`
		} `hcl:"deeper"`
	} `hcl:"deep"`
	embeddedTags
}

type embeddedTags struct {
	Below map[string]int `hcl:"below" refused:"no"`
}

func TestSetDefaults(t *testing.T) {
	t.Parallel()
	var c tagged
	c.Name = "mine"
	SetDefaults(&c)
	if c.Port != 8081 || c.TTL != 90*time.Second || c.Name != "mine" || c.Section != nil {
		t.Errorf("%+v", c)
	}
	file, err := Parse("f", []byte("section {}"))
	if err != nil {
		t.Fatal(err)
	}
	if err := file.Decode(&c); err != nil {
		t.Fatal(err)
	}
	SetDefaults(&c)
	if c.Section == nil || c.Section.Inner != "i" {
		t.Errorf("section: %+v", c.Section)
	}
}

func TestUnsupported(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct {
		notices []string
		problem string
	}{
		"": {},
		"quiet = false\nlist = []\nbelow {}\nport = 1": {},
		"deep { inner = false }":                       {notices: []string{"x.deep.inner"}},
		"section {}":                                   {notices: []string{"x.section"}},
		"\nquiet = true\nlist = [\"a\"]\n":             {problem: "f:2: x.quiet: not supported: no\nf:3: x.list: not supported: no"},
		"below { a = 1 }":                              {problem: "f:1: x.below: not supported: no"},
		"deep {\ndeeper {\nraw = 1\n}\n}":              {problem: "f:3: x.deep.deeper.raw: not supported: no"},
	} {
		file, err := Parse("f", []byte("x {"+text+"}"))
		if err != nil {
			t.Fatal(err)
		}
		var c struct {
			X tagged `hcl:"x"`
		}
		if err := file.Decode(&c); err != nil {
			t.Fatal(err)
		}
		notices, problem := Unsupported(file, "", c)
		var keys []string
		for _, n := range notices {
			keys = append(keys, n.Key)
		}
		if got := fmt.Sprint(problem); (problem != nil || want.problem != "") && got != want.problem {
			t.Errorf("%q: %s, want %s", text, got, want.problem)
		}
		if diff := cmp.Diff(want.notices, keys); diff != "" {
			t.Errorf("%q: notices (-want +got):\n%s", text, diff)
		}
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	var c struct {
		X  []tagged          `hcl:"x"`
		By map[string]tagged `hcl:"by"`
		P  Plugins           `hcl:"plugins"`
	}
	got := Keys(&c)
	inner := []string{"port", "ttl", "name", "quiet", "list", "section", "section.inner", "deep", "deep.inner", "deep.deeper", "deep.deeper.raw", "below"}
	want := []string{"x"}
	for _, k := range inner {
		want = append(want, "x."+k)
	}
	want = append(want, "by")
	for _, k := range inner {
		want = append(want, "by.*."+k)
	}
	if diff := cmp.Diff(append(want, "plugins"), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLater(t *testing.T) {
	t.Parallel()
	l := Later{Type: "NodeAttestor", Name: "cloud", Reason: "not yet", Keys: "region tags{*} clusters{*{audience names}}\n\t broker{list{id}}"}
	file, err := Parse("f", []byte(`plugins {
NodeAttestor "cloud" {
plugin_data {
REGION = "x"
tags { anything = 1 }
clusters = [{ "one" = { audience = [] audiense = 1 } }]
broker { list = [{ id = 1 }, { di = 2 }] }
tags2 = 1
clusters2 {}
}
}
}`))
	if err != nil {
		t.Fatal(err)
	}
	var doc document
	if err := file.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	got := doc.Plugins.Check(nil, []Later{l})
	const data = "plugins.NodeAttestor.cloud.plugin_data."
	want := "f:2: plugins.NodeAttestor.cloud: not supported: not yet\n" +
		"f:6: " + data + "clusters.one.audiense: unknown key; did you mean \"audience\"?\n" +
		"f:7: " + data + "broker.list.di: unknown key; did you mean \"id\"?\n" +
		"f:8: " + data + "tags2: unknown key; did you mean \"tags\"?\n" +
		"f:9: " + data + "clusters2: unknown key; did you mean \"clusters\"?"
	if got == nil || got.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", got, want)
	}
	if diff := cmp.Diff([]string{"audience", "broker", "clusters", "id", "list", "names", "region", "tags"}, l.DataKeys()); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	var off Plugins
	for _, p := range doc.Plugins {
		p.Enabled = false
		off = append(off, p)
	}
	if err := off.Check(nil, nil); err != nil {
		t.Errorf("a plugin that is switched off: %v", err)
	}
}

func TestWord(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`a = "x"`: "x", `a "y" { b = 1 }`: "y", `a = 1`: "", `a {}`: "", `a { b = 1 c = 2 }`: "", ``: "", `{"a": null}`: "", `{"a": [{"z": []}]}`: "z",
	} {
		file, err := Parse("f", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		var c struct {
			A Raw `hcl:"a"`
		}
		if err := file.Decode(&c); err != nil {
			t.Fatal(err)
		}
		if got := c.A.Word(); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// TestWrap keeps the lines that errors have, and gives the plugin's to others.
func TestWrap(t *testing.T) {
	t.Parallel()
	file, err := Parse("f", []byte("plugins {\nKeyManager \"disk\" {\nplugin_data {\nkeys_path = 1\n}\n}\n}"))
	if err != nil {
		t.Fatal(err)
	}
	var doc document
	if err := file.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	p := doc.Plugins[0]
	got := p.Wrap(errors.Join(p.DataErrorf("keys_path", "is wrong"), errors.New("all is wrong")))
	want := "f:2: plugins.KeyManager.disk: all is wrong\nf:4: plugins.KeyManager.disk.plugin_data.keys_path: is wrong"
	if got.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", got, want)
	}
	if p.Wrap(nil) != nil {
		t.Error("nothing became an error")
	}
	if notices, err := p.Unsupported(struct {
		Path string `hcl:"keys_path" accepted:"why"`
	}{"x"}); err != nil || !reflect.DeepEqual(notices, []Notice{{"plugins.KeyManager.disk.plugin_data.keys_path", "why"}}) {
		t.Errorf("%v, %v", notices, err)
	}
}
