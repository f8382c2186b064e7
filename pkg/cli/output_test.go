package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	typesv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
)

func formatOf(t *testing.T, args ...string) *Format {
	t.Helper()
	flags := pflag.NewFlagSet("x", pflag.ContinueOnError)
	format := OutputFlag(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return format
}

func prettyWord(w io.Writer) error {
	_, err := io.WriteString(w, "pretty\n")
	return err
}

func TestPrint(t *testing.T) {
	t.Parallel()
	entry := &typesv1.Entry{Id: "<a&b>", SpiffeId: &typesv1.SPIFFEID{TrustDomain: "td", Path: "/x"}, ExpiresAt: 1 << 53,
		Selectors: []*typesv1.Selector{{Type: "t", Value: "v"}}, DnsNames: []string{"d"}}
	const (
		line = `{"admin":false,"created_at":"0","dns_names":["d"],"downstream":false,"expires_at":"9007199254740992","federates_with":[],` +
			`"hint":"","id":"\u003ca\u0026b\u003e","jwt_svid_ttl":0,"revision_number":"0","selectors":[{"type":"t","value":"v"}],"spiffe_id":{"path":"/x","trust_domain":"td"},` +
			`"store_svid":false,"x509_svid_ttl":0}`
		lines = "admin: false\ncreated_at: \"0\"\ndns_names:\n  - d\ndownstream: false\nexpires_at: \"9007199254740992\"\nfederates_with: []\n" +
			"hint: \"\"\nid: <a&b>\njwt_svid_ttl: 0\nrevision_number: \"0\"\nselectors:\n  - type: t\n    value: v\nspiffe_id:\n  path: /x\n  trust_domain: td\n" +
			"store_svid: false\nx509_svid_ttl: 0\n"
	)
	tests := []struct {
		name     string
		args     []string
		messages []proto.Message
		want     string
	}{
		{"pretty by default", nil, []proto.Message{entry}, "pretty\n"},
		{"pretty", []string{"--output", "pretty"}, []proto.Message{entry}, "pretty\n"},
		{"prettyprint", []string{"--output", "PrettyPrint"}, []proto.Message{entry}, "pretty\n"},
		{"json", []string{"--output=json"}, []proto.Message{entry}, line + "\n"},
		{"json twice", []string{"--output=json", "-o", "JSON"}, []proto.Message{entry}, line + "\n"},
		{"two", []string{"--output=json"}, []proto.Message{entry, entry}, "[" + line + "," + line + "]\n"},
		{"none", []string{"--output=json"}, nil, ""},
		{"yaml", []string{"-o", "yaml"}, []proto.Message{entry}, lines},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var got bytes.Buffer
			if err := formatOf(t, test.args...).Print(&got, prettyWord, test.messages...); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got.String()); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPrintValue(t *testing.T) {
	t.Parallel()
	value := struct {
		Z []byte `json:"z"`
		A int64  `json:"a"`
		B any    `json:"b"`
	}{[]byte{1}, 1<<62 + 1, []any{1.5, "2", "no", nil, "a: b", "\u2028\n"}}
	tests := []struct{ format, want string }{
		{"pretty", "pretty\n"},
		{"json", `{"z":"AQ==","a":4611686018427387905,"b":[1.5,"2","no",null,"a: b","\u2028\n"]}` + "\n"},
	}
	for _, test := range tests {
		var got bytes.Buffer
		if err := formatOf(t, "-o", test.format).PrintValue(&got, prettyWord, value); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, got.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.format, diff)
		}
	}

	// YAML says what JSON says.
	var inJSON, inYAML bytes.Buffer
	if err := formatOf(t, "-o", "json").PrintValue(&inJSON, prettyWord, value); err != nil {
		t.Fatal(err)
	}
	if err := formatOf(t, "-o", "yaml").PrintValue(&inYAML, prettyWord, value); err != nil {
		t.Fatal(err)
	}
	var fromYAML any
	if err := yaml.Unmarshal(inYAML.Bytes(), &fromYAML); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(fromYAML)
	if err != nil {
		t.Fatal(err)
	}
	var want, got any
	for _, p := range []struct {
		text []byte
		into *any
	}{{inJSON.Bytes(), &want}, {again, &got}} {
		if err := json.Unmarshal(p.text, p.into); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("YAML differs from JSON (-json +yaml):\n%s\n%s", diff, inYAML.String())
	}
}

func TestKindsOfFormat(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"pretty", "json", "yaml"} {
		f := formatOf(t, "-o", name)
		if f.String() != name || f.IsJSON() != (name == "json") || f.IsPretty() != (name == "pretty") {
			t.Errorf("%s: %s, JSON %t, pretty %t", name, f, f.IsJSON(), f.IsPretty())
		}
	}
}

func TestOutputFlagRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct{ args, want string }{
		{"--output xml", `bad formatter flag: unknown format option: "xml"`},
		{"-o json --output yaml", `the output format has already been set to "json"`},
	}
	for _, test := range tests {
		flags := pflag.NewFlagSet("x", pflag.ContinueOnError)
		OutputFlag(flags)
		if err := flags.Parse(strings.Fields(test.args)); err == nil || !strings.HasSuffix(err.Error(), test.want) {
			t.Errorf("%s: %v, want %s", test.args, err, test.want)
		}
	}
}
