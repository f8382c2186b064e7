package agentpath

import (
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/credence-id/credence/pkg/attest/node"
)

type sample struct {
	PluginName, CN, Path string
	Serial               *big.Int
	SANs                 map[string]string
	Names                []string
}

func values(cn string) sample {
	return sample{
		PluginName: "m", CN: cn, Path: "a/b", Serial: big.NewInt(255),
		SANs: map[string]string{"dc": "east", "deep": "a/b"}, Names: []string{"x", "y"},
	}
}

func TestPath(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{ // "" is refused
		"/m/{{ .CN }}":                                              "/m/host",
		"/{{ .PluginName }}/{{ .CN }}":                              "/m/host",
		"/{{.PluginName}}/{{.Path}}":                                "/m/a/b",
		"/m/x-{{ .CN }}.y":                                          "/m/x-host.y",
		"/m/{{ .Serial }}":                                          "/m/255",
		"/m/{{ .SANs.dc }}/{{ .CN | upper }}":                       "/m/east/HOST",
		"/m/{{ .CN | trunc 2 }}":                                    "/m/ho",
		`/m/{{ regexReplaceAll "o" .CN "0" }}`:                      "/m/h0st",
		`/m/{{ join "-" .Names }}`:                                  "/m/x-y",
		`/m{{ range .Names }}/{{ . }}{{ end }}`:                     "/m/x/y",
		`/m/{{ if eq .CN "host" }}h{{ else }}o{{ end }}`:            "/m/h",
		`/m/{{ with .CN }}{{ . }}{{ end }}`:                         "/m/host",
		`/m/{{ $c := .CN }}{{ $c }}`:                                "/m/host",
		`/m/{{ define "x" }}{{ .CN }}{{ end }}{{ template "x" . }}`: "/m/host",
		"{{/* ours */}}/m/{{ .CN }}":                                "/m/host",
		"/m/{{ .CN | sha256sum | trunc 8 }}":                        "/m/4740ae63",

		"/m/{{ .SANs.deep }}":            "",
		"/m/{{ .SANs.none }}":            "",
		"/m/{{ .Nothing }}":              "",
		`/m/{{ printf "%s/x" .CN }}`:     "",
		"/m/{{ .Path | lower }}":         "",
		`/m/{{ "" }}`:                    "",
		`/m/{{ fail "no" }}`:             "",
		`/m/{{ repeat 2000 .CN }}`:       "",
		`/m/{{ range .Names }}{{ end }}`: "",
		`/m/{{ define "y" }}{{ .SANs.deep }}{{ end }}{{ template "y" . }}`: "",
		`/m/{{ if true }}{{ .SANs.deep }}{{ end }}`:                        "",
		`/m/{{ if false }}x{{ else }}{{ .SANs.deep }}{{ end }}`:            "",
		`/m/{{ with .SANs.deep }}{{ . }}{{ end }}`:                         "",
		`/m/{{ range .SANs }}{{ . }}{{ end }}`:                             "",
		`{{ "/other/x" }}`:                                                 "",
		`{{ if true }}/other/{{ .CN }}{{ end }}`:                           "",
		`/m/a/{{ if true }}../{{ end }}{{ .CN }}`:                          "",
	} {
		tmpl, err := Parse("m", text, "Path")
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got, err := tmpl.Path(values("host"))
		switch {
		case want != "" && (err != nil || got != want):
			t.Errorf("%s: %q, want %q, error %v", text, got, want, err)
		case want == "" && (got != "" || !errors.Is(err, node.ErrRefused)):
			t.Errorf("%s: %q, error %v", text, got, err)
		}
	}
}

// TestS20_ValuesAreNotNormalised: a bad value is refused wherever it is.
func TestS20_ValuesAreNotNormalised(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"/m/{{ .CN }}", "/m/{{ .CN }}x", "/m/x{{ .CN }}", "/m/x/{{ .CN }}/y", "/m/{{ .CN | toString }}"} {
		tmpl, err := Parse("m", text)
		if err != nil {
			t.Fatal(err)
		}
		for _, cn := range []string{
			"", ".", "..", "/", "a/b", "../x", "%2e", "%2e%2e", "%2F", "é", "\uff0e\uff0e", "a b", " a", "a\n", "\x00", "a\xff", "~", "a:b", "<no value>",
		} {
			if got, err := tmpl.Path(values(cn)); !errors.Is(err, node.ErrRefused) || got != "" {
				t.Errorf("%s with %q: %q, error %v", text, cn, got, err)
			}
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                         "begin",
		"/cn/{{ .CN }}":            "begin",
		"/m":                       "begin",
		"/mm/{{ .CN }}":            "begin",
		"m/{{ .CN }}":              "begin",
		"{{ .PluginName }}/x":      "begin",
		"/join_token/{{ .CN }}":    "begin",
		"/{{ .PluginName }}-x/y":   "begin",
		"/m/{{ .CN":                "unclosed",
		"/m/{{ env \"HOME\" }}":    "not defined",
		"/m/{{ now }}":             "not defined",
		"/m/{{ getHostByName 1 }}": "not defined",
		"/m/a b/{{ .CN }}":         "text",
		"/m/%2e%2e/{{ .CN }}":      "text",
	} {
		if _, err := Parse("m", text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", text, err, want)
		}
	}
}

// TestCheck: what no values have is found before there are any; what these do
// not have is not looked at.
func TestCheck(t *testing.T) {
	t.Parallel()
	type inner struct{ Name string }
	values := struct {
		CN   string
		List []string
		In   inner
		Map  map[string]string
	}{}
	for text, want := range map[string]string{
		"/m/{{ .CN }}":                         "",
		"/m/{{ .In.Name }}":                    "",
		"/m/{{ .Map.x }}":                      "",
		"/m/{{ index .List 0 }}":               "",
		"/m/{{ if .CN }}x{{ else }}y{{ end }}": "",
		"/m/{{ .Nonsense }}":                   "can't evaluate field Nonsense",
		"/m/{{ .CN }}/{{ .In.Nonsense }}":      "can't evaluate field Nonsense",
	} {
		tmpl, err := Parse("m", text)
		if err != nil {
			t.Fatal(err)
		}
		if err := tmpl.Check(values); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", text, err, want)
		}
		if _, err := tmpl.Path(values); err == nil && text != "/m/{{ if .CN }}x{{ else }}y{{ end }}" {
			t.Errorf("%s: a path without values: its guards are gone", text)
		}
	}
}

// TestFunctions: every function that is named is there.
func TestFunctions(t *testing.T) {
	t.Parallel()
	for name, f := range functions() {
		if f == nil {
			t.Errorf("%s is not a function", name)
		}
	}
	if got := len(functions()); got != len(functionNames) || got != 118 {
		t.Errorf("%d functions, of %d names", got, len(functionNames))
	}
}

// FuzzPath: what comes out begins as it must and has no part that was changed.
func FuzzPath(f *testing.F) {
	for _, cn := range []string{"host", "..", "a/b", "%2e", "é", "", "a\x00"} {
		f.Add(cn)
	}
	tmpl, err := Parse("m", "/{{ .PluginName }}/{{ .CN }}")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, cn string) {
		got, err := tmpl.Path(values(cn))
		if err == nil && got != "/m/"+cn || err == nil && strings.Contains(cn, "/") || err != nil && got != "" {
			t.Errorf("%q: %q, error %v", cn, got, err)
		}
	})
}
