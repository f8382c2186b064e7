package manifest

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

// full is an entry with every field of a file.
var full = &types.Entry{
	Id: "i", SpiffeId: &types.SPIFFEID{TrustDomain: "td.test", Path: "/s"}, ParentId: &types.SPIFFEID{TrustDomain: "td.test", Path: "/p"},
	Selectors: []*types.Selector{{Type: "a", Value: "b:c"}, {Type: "d", Value: "e f"}}, X509SvidTtl: 1, JwtSvidTtl: 2,
	FederatesWith: []string{"one.test", "two.test"}, DnsNames: []string{"x", "y"}, Admin: true, Downstream: true, StoreSvid: true,
	Hint: "😀", ExpiresAt: 3,
	AdditionalAttributes: &types.Entry_AdditionalAttributes{DisableX509SvidPrefetch: true, JwtSvidIncludeJti: true},
}

const fullJSON = `{"entries": [{
	"entry_id": "i", "spiffe_id": "spiffe://td.test/s", "parent_id": "spiffe://td.test/p",
	"selectors": [{"type": "a", "value": "b:c"}, {"type": "d", "value": "e f"}], "x509_svid_ttl": 1, "jwt_svid_ttl": 2,
	"federates_with": ["one.test", "spiffe://two.test"], "dns_names": ["x", "y"], "admin": true, "downstream": true, "store_svid": true,
	"hint": "\ud83d\ude00", "entryExpiry": 3, "revision_number": 4, "created_at": 5,
	"additional_attributes": {"disable_x509_svid_prefetch": true, "jwt_svid_include_jti": true}
}]}`

const fullYAML = `
entries:
- entry_id: i
  spiffe_id: &id spiffe://td.test/s
  parent_id: spiffe://td.test/p
  selectors: [a:b:c, {type: d, value: e f}]
  x509_svid_ttl: 1
  jwt_svid_ttl: 2
  federates_with: [one.test, "spiffe://two.test"]
  dns_names: [x, y]
  admin: true
  downstream: true
  store_svid: true
  hint: 😀
  entryExpiry: 3
  revision_number: 4
  created_at: 5
  additional_attributes: {disable_x509_svid_prefetch: true, jwt_svid_include_jti: true}
`

func TestDecodeData(t *testing.T) {
	t.Parallel()
	asRead := proto.CloneOf(full)
	asRead.RevisionNumber, asRead.CreatedAt = 4, 5
	for name, text := range map[string]string{"JSON": fullJSON, "YAML": fullYAML} {
		for _, strict := range []bool{true, false} {
			got, err := DecodeData("f", []byte(text), strict)
			if !strict && name == "YAML" {
				if err == nil {
					t.Error("SPIRE reads no YAML")
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if diff := cmp.Diff([]*types.Entry{asRead}, got, protocmp.Transform()); diff != "" {
				t.Errorf("%s, strict %t (-want +got):\n%s", name, strict, diff)
			}
		}
	}
}

func TestDecodeDataAsSPIRE(t *testing.T) {
	t.Parallel()
	tests := []struct {
		text, want string // the error, or nothing
		entries    int
	}{
		{`{}`, "", 0},
		{`null`, "", 0},
		{`{"Entries": [{"Spiffe_ID": "spiffe://td.test/s", "parent_id": "spiffe://td.test/p", "unknown": 1}]}`, "", 1},
		{`{"entries": [null]}`, "missing registration entry", 0},
		{`{"entries": [{}]}`, "invalid SPIFFE ID: cannot be empty", 0},
		{`{"entries": [{"spiffe_id": "spiffe://td.test/s"}]}`, "invalid parent ID: cannot be empty", 0},
		{`{"entries": [{"spiffe_id": "spiffe://td.test/s", "parent_id": "spiffe://td.test/p", "federates_with": ["A"]}]}`,
			"invalid federated trust domain: trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores", 0},
		{`{"entries": [{"spiffe_id": "spiffe://td.test/s", "parent_id": "spiffe://td.test/p", "selectors": [null]}]}`, "missing selector", 0},
		{``, "unexpected end of JSON input", 0},
	}
	for _, test := range tests {
		got, err := DecodeData("f", []byte(test.text), false)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != test.want || len(got) != test.entries {
			t.Errorf("%s: %d entries, error %q; want %d, %q", test.text, len(got), text, test.entries, test.want)
		}
	}
}

const known = "; the fields of an entry are entry_id, "

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	const head = "entries:\n- spiffe_id: spiffe://td.test/s\n  parent_id: spiffe://td.test/p\n"
	tests := []struct{ name, text, want string }{
		{"no YAML", "entries: [", "f.yaml:1: did not find expected node content"},
		{"no JSON", "{\"entries\": [\n}", "f.yaml:1: did not find expected node content"},
		{"empty", "", "f.yaml: there are no entries in it; write entries: [] to declare none"},
		{"only comments", "---\n# nothing\n---\n", "f.yaml: there are no entries in it"},
		{"no list", "{}", "f.yaml: there are no entries in it"},
		{"entries without a value", "entries:", "f.yaml:1: entries has to be a list"},
		{"a list", "- a", "f.yaml:1: a file has to have fields: entries"},
		{"a word", "entries", "f.yaml:1: a file has to have fields: entries"},
		{"unknown field of a file", "entry: []", `f.yaml:1: unknown field "entry"; the fields of a file are entries`},
		{"entries no list", "entries:\n  spiffe_id: x", "f.yaml:2: entries has to be a list"},
		{"entry no mapping", "entries:\n- x", "f.yaml:2: an entry has to have fields: entry_id, "},
		{"unknown field", head + "  selector: [a:b]", `f.yaml:4: unknown field "selector"` + known},
		{"unknown field in JSON", "{\n\"entries\":\n[{\n\"spifeID\": 1}]}", `f.yaml:4: unknown field "spifeID"` + known},
		{"field in other case", head + "  Admin: true", `f.yaml:4: unknown field "Admin"` + known},
		{"field twice", head + "  selectors: [a:b]\n  spiffe_id: spiffe://td.test/s", `f.yaml:5: field "spiffe_id" is there twice`},
		{"no selectors", head, "f.yaml:2: at least one selector is required"},
		{"selectors no list", head + "  selectors: a:b", "f.yaml:4: selectors has to be a list"},
		{"selector without colon", head + "  selectors:\n  - a:b\n  - a", `f.yaml:6: selector "a" must be formatted as type:value`},
		{"selector with unknown field", head + "  selectors:\n  - {type: a, val: b}", `f.yaml:5: unknown field "val"; the fields of a selector are type, value`},
		{"unknown attribute", head + "  selectors: [a:b]\n  additional_attributes: {jti: true}",
			`f.yaml:5: unknown field "jti"; the fields of additional_attributes are disable_x509_svid_prefetch, jwt_svid_include_jti`},
		{"no number", head + "  selectors: [a:b]\n  x509_svid_ttl: 1h", "f.yaml:5: cannot unmarshal !!str `1h` into int32"},
		{"too large a number", head + "  selectors: [a:b]\n  jwt_svid_ttl: 2147483648", "f.yaml:5: cannot unmarshal !!int `2147483648` into int32"},
		{"no boolean", head + "  selectors: [a:b]\n  admin: 1", "f.yaml:5: cannot unmarshal !!int `1` into bool"},
		{"no SPIFFE ID", "entries:\n- spiffe_id: s\n  parent_id: spiffe://td.test/p\n  selectors: [a:b]", "f.yaml:2: invalid SPIFFE ID: scheme is missing or invalid"},
		{"two mistakes", head + "  admn: true\n- {}", "f.yaml:4: unknown field \"admn\"" + known},
		{"twice", head + "  selectors: [a:b, c:d]\n" + strings.TrimPrefix(head, "entries:\n") + "  entry_id: x\n  selectors: [c:d, a:b, a:b]",
			"f.yaml:5: an entry with the same parent, SPIFFE ID and selectors is declared at f.yaml:2"},
		{"ID twice", head + "  selectors: [a:b]\n  entry_id: x\n" + strings.TrimPrefix(head, "entries:\n") + "  entry_id: x\n  selectors: [c:d]",
			"f.yaml:6: entry x is also declared at f.yaml:2"},
		{"alias bomb", "a: &a [x, x]\nb: &b [*a, *a]\nentries: *b", `f.yaml:1: unknown field "a"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir() + "/"
			if err := os.WriteFile(dir+"f.yaml", []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := Load(web, nil, dir+"f.yaml")
			if err == nil || !strings.HasPrefix(strings.ReplaceAll(err.Error(), dir, ""), test.want) {
				t.Errorf("got %v, %v; want %s", got, err, test.want)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"b.json":     strings.ReplaceAll(fullJSON, `"i"`, `""`),
		"a.yaml":     "---\nentries: []\n---\nentries:\n- {spiffe_id: &i spiffe://td.test/a, parent_id: *i, selectors: &s [a:b]}\n- {spiffe_id: spiffe://td.test/b, parent_id: *i, selectors: *s}\n---\n",
		"c.yml":      "entries: []",
		".hidden":    "x",
		".x.yaml":    "x",
		"notes.txt":  "x",
		"sub/d.yaml": "x",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(web, strings.NewReader(fullYAML), dir, "-"); err == nil || !strings.Contains(err.Error(), "-:3: an entry with the same parent") {
		t.Errorf("the same from stdin and from a folder: %v", err)
	}
	got, err := Load(web, nil, dir)
	if err != nil {
		t.Fatal(err)
	}
	type line struct{ ID, At, Path string }
	var lines []line
	for _, d := range got {
		lines = append(lines, line{d.Entry.GetId(), strings.TrimPrefix(d.At, dir), d.Entry.GetSpiffeId().GetPath()})
	}
	want := []line{ // An ID that changes with a release would orphan what the one before made.
		{"apply.web.cc07c4896df79fbf426c8a695798678c", "/a.yaml:5", "/a"},
		{"apply.web.9bbcf32133af1a5c5f53093ce736ac00", "/a.yaml:6", "/b"},
		{"apply.web.cf3c54b426fd74b26df499723f2386d4", "/b.json:1", "/s"},
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("declared (-want +got):\n%s", diff)
	}
	if e := got[2].Entry; e.GetRevisionNumber() != 0 || e.GetCreatedAt() != 0 || e.GetHint() != full.GetHint() {
		t.Errorf("what a server sets was kept, or something else was not: %v", e)
	}
	if _, err := Load(web, nil, filepath.Join(dir, "nowhere")); err == nil {
		t.Error("a path that is not there is no error")
	}
	if _, err := Load(web, nil, t.TempDir()); err == nil || !strings.Contains(err.Error(), "no file that ends in") {
		t.Errorf("an empty folder: %v", err)
	}
}

func TestSets(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "-", "a-", "-a", "A", "a.b", "a_b", strings.Repeat("a", 64)} {
		if s, err := ParseSet(name); err == nil {
			t.Errorf("%q is a set: %v", name, s)
		}
	}
	for _, name := range []string{"a", "0", "a-b", strings.Repeat("a", 63)} {
		s, err := ParseSet(name)
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		id := s.ID(full)
		if !s.Owns(id) || len(id) > 255 || web.Owns(id) || s.Owns("apply."+name+".") || s.Owns("x") || (Set{}).Owns(id) {
			t.Errorf("set %s and ID %s", s, id)
		}
	}
}

// FuzzParse feeds files of others: never a panic, and what is accepted has at
// most the fields that are known.
func FuzzParse(f *testing.F) {
	f.Add([]byte(fullJSON))
	f.Add([]byte(fullYAML))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("entries:\n- &x {selectors: [*x]}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		records, err := parse("f", text)
		if err != nil {
			return
		}
		for _, r := range records {
			if r.record == nil || r.at.line < 1 {
				t.Errorf("%q: record %+v", text, r)
			}
		}
	})
}

func TestLoadWaitsForNoPipe(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte("entries: []"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "b.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Load(web, nil, dir); err == nil || !strings.HasSuffix(err.Error(), "b.yaml: it is not a regular file") {
		t.Errorf("got %v, %v; want that b.yaml is not a regular file", got, err)
	}
}
