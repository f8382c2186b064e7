package server

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/keys/memkey"
	"github.com/credence-id/credence/pkg/registry"
	recordv1 "github.com/credence-id/credence/proto/record/v1"
)

const (
	stPrepared = recordv1.JournaledAuthority_STATE_PREPARED
	stActive   = recordv1.JournaledAuthority_STATE_ACTIVE
	stOld      = recordv1.JournaledAuthority_STATE_OLD
)

// keptNow is when these tests play; authorities live from an hour before it to
// 23 hours after.
var keptNow = time.Unix(1_800_000_000, 0)

func authority(id string, state recordv1.JournaledAuthority_State, flags ...string) *recordv1.JournaledAuthority {
	r := &recordv1.JournaledAuthority{
		AuthorityId: id, Slot: "slot-" + id, State: state, Chain: [][]byte{[]byte("leaf " + id), []byte("root " + id)},
		IssuedAt: keptNow.Add(-time.Hour).Unix(), NotAfter: keptNow.Add(23 * time.Hour).Unix(),
	}
	for _, f := range flags {
		switch f {
		case "tainted":
			r.Tainted = true
		case "revoked":
			r.Revoked = true
		case "expired":
			r.NotAfter = keptNow.Unix()
		case "due": // past the time at which another takes its place
			r.IssuedAt, r.NotAfter = keptNow.Add(-23*time.Hour).Unix(), keptNow.Add(time.Hour).Unix()
		}
	}
	return r
}

func shown(list []*recordv1.JournaledAuthority) []string {
	var out []string
	for _, r := range list {
		text := r.GetAuthorityId() + " " + strings.ToLower(strings.TrimPrefix(r.GetState().String(), "STATE_"))
		if r.GetTainted() {
			text += " tainted"
		}
		if r.GetRevoked() {
			text += " revoked"
		}
		out = append(out, text)
	}
	return out
}

func bundleOf(ids ...string) *registry.Bundle {
	b := &registry.Bundle{}
	for _, id := range ids {
		b.X509Authorities = append(b.X509Authorities, registry.X509Authority{DER: []byte("root " + id)})
	}
	return b
}

func shownBundle(b *registry.Bundle) []string {
	var out []string
	for _, a := range b.X509Authorities {
		text := strings.TrimPrefix(string(a.DER), "root ")
		if a.Tainted {
			text += " tainted"
		}
		out = append(out, text)
	}
	return out
}

func TestMergeX509(t *testing.T) {
	t.Parallel()
	type list = []*recordv1.JournaledAuthority
	for name, c := range map[string]struct {
		have, had  list
		signer     string
		bundle     *registry.Bundle
		want       []string
		wantBundle []string
	}{
		"nothing has happened since": {
			have: list{authority("b", stPrepared), authority("a", stActive)}, had: list{authority("b", stPrepared), authority("a", stActive)},
			signer: "a", bundle: bundleOf("a", "b"),
			want: []string{"b prepared", "a active"}, wantBundle: []string{"a", "b"},
		},
		"another was made and signs": {
			have: list{authority("a", stActive)}, had: list{authority("b", stActive), authority("a", stOld)},
			signer: "b", bundle: bundleOf("a"),
			want: []string{"b prepared", "a old"}, wantBundle: []string{"a", "b"},
		},
		"what was prepared signs": {
			have: list{authority("b", stPrepared), authority("a", stActive)}, had: list{authority("b", stActive), authority("a", stOld)},
			signer: "b", bundle: bundleOf("a", "b"),
			want: []string{"b prepared", "a old"}, wantBundle: []string{"a", "b"},
		},
		"three were made": {
			have:   list{authority("b", stPrepared), authority("a", stActive)},
			had:    list{authority("d", stPrepared), authority("c", stActive), authority("b", stOld), authority("a", stOld)},
			signer: "c", bundle: bundleOf("a", "b"),
			want: []string{"d old", "c prepared", "b old", "a old"}, wantBundle: []string{"a", "b", "d", "c"},
		},
		"the first was tainted, and another revoked": {
			have:   list{authority("a", stActive), authority("z", stOld)},
			had:    list{authority("b", stActive), authority("a", stOld, "tainted"), authority("z", stOld, "tainted", "revoked")},
			signer: "b", bundle: bundleOf("z", "a"),
			want: []string{"b prepared", "a old tainted", "z old tainted revoked"}, wantBundle: []string{"a tainted", "b"},
		},
		"it was revoked at another server": {
			have: list{authority("a", stOld, "tainted", "revoked")}, had: list{authority("b", stPrepared), authority("a", stActive)},
			signer: "a", bundle: bundleOf("z"),
			want: []string{"b old", "a old tainted revoked"}, wantBundle: []string{"z", "b"},
		},
		"all keys are gone": {
			have: list{authority("a", stActive)}, had: list{authority("b", stActive), authority("a", stOld)},
			bundle: bundleOf("a"), want: []string{"b old", "a old"}, wantBundle: []string{"a", "b"},
		},
		"what was made has expired": {
			have: list{authority("a", stActive, "expired")}, had: list{authority("b", stActive, "expired")},
			bundle: bundleOf("a"), want: []string{"a active"}, wantBundle: []string{"a"},
		},
		"the store has forgotten everything": {
			had: list{authority("b", stActive)}, signer: "b", bundle: bundleOf(),
			want: []string{"b prepared"}, wantBundle: []string{"b"},
		},
		"what is not in the copy stays": {
			have: list{authority("y", stActive), authority("x", stOld)}, had: list{authority("b", stActive)}, signer: "b", bundle: bundleOf("y", "x"),
			want: []string{"b prepared", "y active", "x old"}, wantBundle: []string{"y", "x", "b"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before := shown(c.had)
			got := mergeX509(c.bundle, c.have, c.had, c.signer, keptNow)
			if diff := cmp.Diff(c.want, shown(got)); diff != "" {
				t.Errorf("journal (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.wantBundle, shownBundle(c.bundle)); diff != "" {
				t.Errorf("bundle (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, shown(c.had)); diff != "" {
				t.Errorf("it changed what it was given, and an Update may run it again:\n%s", diff)
			}
		})
	}
}

func TestMergeJWT(t *testing.T) {
	t.Parallel()
	b := &registry.Bundle{}
	for _, id := range []string{"a", "b", "c"} {
		b.JWTAuthorities = append(b.JWTAuthorities, registry.JWTAuthority{KeyID: id})
	}
	have := []*recordv1.JournaledAuthority{authority("a", stActive), authority("b", stPrepared), authority("c", stOld)}
	mergeJWT(b, have, []*recordv1.JournaledAuthority{
		authority("new", stActive), authority("a", stOld, "tainted"), authority("b", stOld, "tainted", "revoked"), authority("c", stOld),
	})
	if diff := cmp.Diff([]string{"a old tainted", "b old tainted revoked", "c old"}, shown(have)); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}
	if got := fmt.Sprint(b.JWTAuthorities[0].KeyID, b.JWTAuthorities[0].Tainted, b.JWTAuthorities[1].KeyID, len(b.JWTAuthorities)); got != "atruec2" {
		t.Errorf("bundle: %+v", b.JWTAuthorities)
	}
}

// TestKeyHolder: who signed last goes on, if its key is there.
func TestKeyHolder(t *testing.T) {
	t.Parallel()
	manager := memkey.New()
	withKey := func(r *recordv1.JournaledAuthority) *recordv1.JournaledAuthority {
		key, err := manager.Generate(t.Context(), r.GetSlot(), keys.ECP256)
		if err != nil {
			t.Fatal(err)
		}
		if r.PublicKey, err = x509.MarshalPKIXPublicKey(key.Signer.Public()); err != nil {
			t.Fatal(err)
		}
		return r
	}
	another := withKey(authority("replaced", stActive))
	withKey(authority("replaced", stActive))
	for name, c := range map[string]struct {
		had  []*recordv1.JournaledAuthority
		want string
	}{
		"none":                             {nil, ""},
		"the active":                       {[]*recordv1.JournaledAuthority{withKey(authority("p", stPrepared)), withKey(authority("a", stActive))}, "a"},
		"the prepared, when it is due":     {[]*recordv1.JournaledAuthority{withKey(authority("p2", stPrepared)), withKey(authority("a2", stActive, "due"))}, "p2"},
		"the active, if there is no other": {[]*recordv1.JournaledAuthority{withKey(authority("a3", stActive, "due"))}, "a3"},
		"the prepared, if the key is gone": {[]*recordv1.JournaledAuthority{withKey(authority("p4", stPrepared)), authority("a4", stActive)}, "p4"},
		"another key in its place":         {[]*recordv1.JournaledAuthority{another}, ""},
		"tainted":                          {[]*recordv1.JournaledAuthority{withKey(authority("t", stActive, "tainted"))}, ""},
		"expired":                          {[]*recordv1.JournaledAuthority{withKey(authority("e", stActive, "expired"))}, ""},
		"old":                              {[]*recordv1.JournaledAuthority{withKey(authority("o", stOld))}, ""},
	} {
		got, err := keyHolder(t.Context(), c.had, manager, keptNow)
		if err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
}

// TestKeptFile: a copy of the store's own journal says nothing new, and one that
// cannot be read is not used.
func TestKeptFile(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	serverID, err := loadServerID(r.inside.settings.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	k := &kept{
		path: filepath.Join(t.TempDir(), keptFile), storeID: "one", serverID: serverID, trustDomain: testDomain, registry: r.inside.registry,
		log: slog.New(slog.NewTextHandler(&log, nil)), changed: make(chan struct{}, 1),
	}
	if j, err := k.read(); j != nil || err != nil {
		t.Errorf("no file: %v, %v", j, err)
	}
	if err := k.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	if j, err := k.read(); j != nil || err != nil {
		t.Errorf("of the same store: %v, %v", j, err)
	}
	if info, err := os.Stat(k.path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	k.storeID = "another"
	j, err := k.read()
	if err != nil || len(j.GetX509()) != 1 || len(j.GetJwt()) != 1 || j.GetX509()[0].GetState() != stActive {
		t.Errorf("of another store: %v, %v", j, err)
	}
	k.trustDomain = "another.example"
	if j, err := k.read(); j != nil || err != nil || !strings.Contains(log.String(), "another trust domain") {
		t.Errorf("of another trust domain: %v, %v, and the log has %q", j, err, log.String())
	}
	log.Reset()
	if err := os.WriteFile(k.path, []byte(`{"store_id":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if j, err := k.read(); j != nil || err != nil || !strings.Contains(log.String(), "level=WARN") {
		t.Errorf("a broken file: %v, %v, and the log has %q", j, err, log.String())
	}
}
