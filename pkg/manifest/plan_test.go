package manifest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

var web = mustSet("web")

func mustSet(name string) Set {
	s, err := ParseSet(name)
	if err != nil {
		panic(err)
	}
	return s
}

// entry is an entry for /name, with a hint; an empty ID is that of set web.
func entry(id, name, hint string) *types.Entry {
	e := &types.Entry{
		SpiffeId: &types.SPIFFEID{TrustDomain: "td.test", Path: "/" + name}, ParentId: &types.SPIFFEID{TrustDomain: "td.test", Path: "/host"},
		Selectors: []*types.Selector{{Type: "unix", Value: "uid:1"}}, Hint: hint,
	}
	if e.Id = id; id == "" {
		e.Id = web.ID(e)
	}
	return e
}

func want(entries ...*types.Entry) []Declared {
	var out []Declared
	for i, e := range entries {
		out = append(out, Declared{e, fmt.Sprintf("f:%d", i+1)})
	}
	return out
}

// show writes a plan in words.
func show(p Plan) string {
	var lines []string
	for _, s := range p.Steps {
		line := fmt.Sprintf("%s %s %s", s.Action, s.Entry.GetId(), s.Entry.GetSpiffeId().GetPath())
		for _, c := range s.Changes {
			line += fmt.Sprintf(" %s %q %q", c.Field, c.From, c.To)
		}
		if s.Problem != "" {
			line += ": " + s.Problem
		}
		lines = append(lines, line)
	}
	lines = append(lines, fmt.Sprintf("unchanged %d", p.Unchanged))
	for _, id := range p.Undeclared {
		lines = append(lines, "undeclared "+id)
	}
	return strings.NewReplacer(entry("", "a", "").Id, "@a", entry("", "b", "").Id, "@b", entry("", "c", "").Id, "@c").Replace(strings.Join(lines, "\n"))
}

func TestDiff(t *testing.T) {
	t.Parallel()
	other := mustSet("web-2").ID(entry("", "b", ""))
	tests := []struct {
		name    string
		desired []*types.Entry
		current []*types.Entry
		prune   bool
		want    string
	}{
		{"nothing", nil, nil, true, "unchanged 0"},
		{"new", []*types.Entry{entry("", "a", ""), entry("x", "b", "")}, nil, false, "create @a /a\ncreate x /b\nunchanged 0"},
		{"there", []*types.Entry{entry("", "a", "h")}, []*types.Entry{entry("", "a", "h")}, true, "unchanged 1"},
		{"changed", []*types.Entry{entry("", "a", "new")}, []*types.Entry{entry("", "a", "old")}, false, "update @a /a hint [\"old\"] [\"new\"]\nunchanged 0"},
		{"another key", []*types.Entry{entry("x", "b", "")}, []*types.Entry{entry("x", "a", "")}, false,
			"update x /b spiffe_id [\"spiffe://td.test/a\"] [\"spiffe://td.test/b\"]\nunchanged 0"},
		{"undeclared stays", nil, []*types.Entry{entry("", "a", "")}, false, "unchanged 0\nundeclared @a"},
		{"undeclared goes", nil, []*types.Entry{entry("", "a", "")}, true, "delete @a /a\nunchanged 0"},
		{"others' stay", nil, []*types.Entry{entry("x", "a", ""), entry(other, "b", ""), entry("apply.web", "c", ""), entry("apply.web.", "d", "")}, true, "unchanged 0"},
		{"others made it", []*types.Entry{entry("", "a", "h")}, []*types.Entry{entry("x", "a", "h")}, true, "unchanged 1"},
		{"others made it otherwise", []*types.Entry{entry("", "a", "h")}, []*types.Entry{entry("x", "a", "")}, true,
			"refuse @a /a: entry x has the same parent, SPIFFE ID and selectors, and is not of this set: delete it, or declare it with its entry_id\nunchanged 0"},
		{"others made it under another ID", []*types.Entry{entry("y", "a", "")}, []*types.Entry{entry("x", "a", "")}, true,
			"refuse y /a: entry x has the same parent, SPIFFE ID and selectors, and is not of this set: delete it, or declare it with its entry_id\nunchanged 0"},
		{"adopted", []*types.Entry{entry("x", "a", "new")}, []*types.Entry{entry("x", "a", "")}, true, "update x /a hint [] [\"new\"]\nunchanged 0"},
		{"gets an ID", []*types.Entry{entry("x", "a", "")}, []*types.Entry{entry("", "a", "")}, true, "delete @a /a\ncreate x /a\nunchanged 0"},
		{"gets an ID without prune", []*types.Entry{entry("x", "a", "")}, []*types.Entry{entry("", "a", "")}, false,
			"refuse x /a: entry @a has the same parent, SPIFFE ID and selectors, and is not declared any more: delete it with -prune\nunchanged 0\nundeclared @a"},
		{"goes last", []*types.Entry{entry("", "b", "")}, []*types.Entry{entry("", "a", "")}, true, "create @b /b\ndelete @a /a\nunchanged 0"},
		{"chain", []*types.Entry{entry("x", "b", ""), entry("y", "c", "")}, []*types.Entry{entry("x", "a", ""), entry("y", "b", "")}, false,
			"update y /c spiffe_id [\"spiffe://td.test/b\"] [\"spiffe://td.test/c\"]\nupdate x /b spiffe_id [\"spiffe://td.test/a\"] [\"spiffe://td.test/b\"]\nunchanged 0"},
		{"chain, the other way round", []*types.Entry{entry("y", "c", ""), entry("x", "b", "")}, []*types.Entry{entry("x", "a", ""), entry("y", "b", "")}, false,
			"update y /c spiffe_id [\"spiffe://td.test/b\"] [\"spiffe://td.test/c\"]\nupdate x /b spiffe_id [\"spiffe://td.test/a\"] [\"spiffe://td.test/b\"]\nunchanged 0"},
		{"circle", []*types.Entry{entry("x", "b", ""), entry("y", "a", "")}, []*types.Entry{entry("x", "a", ""), entry("y", "b", "")}, false,
			"delete x /a\ndelete y /b\ncreate x /b\ncreate y /a\nunchanged 0"},
		{"waits for one that is refused", []*types.Entry{entry("x", "b", ""), entry("y", "c", "")}, []*types.Entry{entry("x", "a", ""), entry("y", "b", ""), entry("z", "c", "")}, false,
			"refuse y /c: entry z has the same parent, SPIFFE ID and selectors, and is not of this set: delete it, or declare it with its entry_id\n" +
				"refuse x /b: entry y has the same parent, SPIFFE ID and selectors, and is refused itself\nunchanged 0"},
		{"takes what is moved", []*types.Entry{entry("x", "b", ""), entry("", "a", "")}, []*types.Entry{entry("x", "a", "")}, false,
			"update x /b spiffe_id [\"spiffe://td.test/a\"] [\"spiffe://td.test/b\"]\ncreate @a /a\nunchanged 0"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := show(Diff(web, want(test.desired...), test.current, test.prune))
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

// Each field that a file can declare makes a difference, and no other does.
func TestDiffSeesEveryField(t *testing.T) {
	t.Parallel()
	base := entry("x", "a", "")
	base.FederatesWith, base.DnsNames = []string{"b.test", "a.test"}, []string{"a", "b"}
	for field, change := range map[string]func(*types.Entry){
		"parent_id":      func(e *types.Entry) { e.ParentId.Path = "/other" },
		"spiffe_id":      func(e *types.Entry) { e.SpiffeId.Path = "/other" },
		"selectors":      func(e *types.Entry) { e.Selectors[0].Value = "uid:2" },
		"x509_svid_ttl":  func(e *types.Entry) { e.X509SvidTtl = 1 },
		"jwt_svid_ttl":   func(e *types.Entry) { e.JwtSvidTtl = 1 },
		"federates_with": func(e *types.Entry) { e.FederatesWith = []string{"a.test"} },
		"dns_names":      func(e *types.Entry) { slices.Reverse(e.DnsNames) },
		"admin":          func(e *types.Entry) { e.Admin = true },
		"downstream":     func(e *types.Entry) { e.Downstream = true },
		"store_svid":     func(e *types.Entry) { e.StoreSvid = true },
		"hint":           func(e *types.Entry) { e.Hint = "h" },
		"entryExpiry":    func(e *types.Entry) { e.ExpiresAt = 1 },
		"disable_x509_svid_prefetch": func(e *types.Entry) {
			e.AdditionalAttributes = &types.Entry_AdditionalAttributes{DisableX509SvidPrefetch: true}
		},
		"jwt_svid_include_jti": func(e *types.Entry) {
			e.AdditionalAttributes = &types.Entry_AdditionalAttributes{JwtSvidIncludeJti: true}
		},
		"":    func(e *types.Entry) { e.RevisionNumber, e.CreatedAt = 5, 6 },
		" ":   func(e *types.Entry) { slices.Reverse(e.FederatesWith) },
		"  ":  func(e *types.Entry) { e.Selectors = append(e.Selectors, e.Selectors[0]) },
		"   ": func(e *types.Entry) { e.AdditionalAttributes = &types.Entry_AdditionalAttributes{} },
	} {
		to := proto.CloneOf(base)
		change(to)
		var got []string
		for _, c := range changes(base, to) {
			got = append(got, c.Field)
		}
		var expect []string
		if strings.TrimSpace(field) != "" {
			expect = []string{field}
		}
		if diff := cmp.Diff(expect, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", field, diff)
		}
	}
	// An entry has no field that is forgotten here: ID, revision and time of
	// creation are not declared, two attributes are in one message.
	if got, want := (&types.Entry{}).ProtoReflect().Descriptor().Fields().Len(), len(Fields(base))+3-1; got != want {
		t.Errorf("entries have %d fields, %d are known", got, want)
	}
}

// An update says of the attributes that they are to be gone: a server may keep
// those of which nothing is said. An entry that never had any gets none.
func TestUpdatesTakeAttributesAway(t *testing.T) {
	t.Parallel()
	now := entry("", "a", "old")
	update := func() *types.Entry {
		p := Diff(web, want(entry("", "a", "new")), []*types.Entry{now}, false)
		if len(p.Steps) != 1 || p.Steps[0].Action != Update {
			t.Fatalf("plan: %s", show(p))
		}
		return p.Steps[0].Entry
	}
	if e := update(); e.AdditionalAttributes != nil {
		t.Errorf("attributes from nowhere: %v", e)
	}
	now.AdditionalAttributes = &types.Entry_AdditionalAttributes{JwtSvidIncludeJti: true}
	if e := update(); e.AdditionalAttributes == nil || e.GetAdditionalAttributes().GetJwtSvidIncludeJti() {
		t.Errorf("attributes are not taken away: %v", e)
	}
	// Numbers are told apart also where neither is zero.
	now.AdditionalAttributes, now.X509SvidTtl = nil, 5
	to := proto.CloneOf(now)
	to.X509SvidTtl = 6
	if got := changes(now, to); len(got) != 1 {
		t.Errorf("changes: %v", got)
	}
}

// model is a server: it knows IDs and keys, and refuses what a server refuses.
type model map[string]*types.Entry

func (m model) similar(e *types.Entry) bool {
	for _, other := range m {
		if other.GetId() != e.GetId() && keyOf(other) == keyOf(e) {
			return true
		}
	}
	return false
}

func (m model) do(s Step) error {
	id := s.Entry.GetId()
	switch s.Action {
	case Create:
		if m[id] != nil || m.similar(s.Entry) {
			return fmt.Errorf("creating %s: already exists", id)
		}
		m[id] = s.Entry
	case Update:
		if m[id] == nil || m.similar(s.Entry) {
			return fmt.Errorf("updating %s: not there, or similar to another", id)
		}
		m[id] = s.Entry
	case Delete:
		if m[id] == nil {
			return fmt.Errorf("deleting %s: not found", id)
		}
		delete(m, id)
	case Refuse:
	}
	return nil
}

func (m model) list() []*types.Entry { return slices.SortedFunc(maps.Values(m), byID) }

// Whatever is there and is declared, and wherever the work is interrupted: every
// step can be done, what others made stays, and in the end the declared entries
// are there and there is nothing left to do.
func TestApplyingConverges(t *testing.T) {
	t.Parallel()
	ids := []string{"x", "y", "z", "", mustSet("web-2").ID(entry("", "a", ""))}
	names := []string{"a", "b", "c", "d"}
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) model {
			m := model{}
			for range rapid.IntRange(0, 6).Draw(t, label) {
				e := entry(rapid.SampledFrom(ids).Draw(t, "id"), rapid.SampledFrom(names).Draw(t, "name"), rapid.SampledFrom([]string{"", "h"}).Draw(t, "hint"))
				if m[e.GetId()] == nil && !m.similar(e) {
					m[e.GetId()] = e
				}
			}
			return m
		}
		server, declared, prune := draw("current"), draw("desired"), rapid.Bool().Draw(t, "prune")
		desired := want(declared.list()...)
		before := maps.Clone(server)
		step := func(limit int) Plan {
			p := Diff(web, desired, server.list(), prune)
			for _, s := range p.Steps[:min(limit, len(p.Steps))] {
				if err := server.do(s); err != nil {
					t.Fatalf("%v\nin\n%s", err, show(p))
				}
			}
			return p
		}
		for range rapid.IntRange(0, 3).Draw(t, "interruptions") {
			step(rapid.IntRange(0, 6).Draw(t, "steps done"))
		}
		step(1 << 20)

		last := Diff(web, desired, server.list(), prune)
		refused := map[string]bool{}
		for _, s := range last.Steps {
			if s.Action != Refuse {
				t.Fatalf("something is left to do:\n%s", show(last))
			}
			refused[s.Entry.GetId()] = true
		}
		for id, e := range declared {
			now := server[id]
			if now == nil || len(changes(now, e)) > 0 {
				if !refused[id] && !server.similar(e) {
					t.Errorf("%s is not as declared", id)
				}
			}
		}
		for id, e := range before {
			mine := declared[id] != nil || prune && web.Owns(id)
			if !mine && server[id] != e {
				t.Errorf("%s is of others, and was touched", id)
			}
		}
		if prune {
			for id := range server {
				if web.Owns(id) && declared[id] == nil && len(last.Steps) == 0 {
					t.Errorf("%s is not declared, and still there", id)
				}
			}
		}
	})
}
