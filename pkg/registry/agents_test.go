package registry

import (
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/credence-id/credence/pkg/store"
)

func newAgent(name string) *Agent {
	return &Agent{
		ID:              id("/spire/agent/join_token/" + name),
		AttestationType: "join_token",
		Selectors:       sel("join_token:" + name),
		Serial:          "1",
		NotAfter:        time.Now().Add(time.Hour).UTC().Truncate(time.Second),
	}
}

// tokenAlias is what `token generate -spiffeID` makes.
func tokenAlias(token string) *Entry {
	return newEntry("/spire/agent/join_token/"+token, "/node/"+token, "spiffe_id:spiffe://example.org/spire/agent/join_token/"+token)
}

func newToken(t testing.TB, r *Registry, token string) *JoinToken {
	t.Helper()
	tok, err := r.CreateJoinToken(t.Context(), token, time.Hour, tokenAlias(token))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func newKey() []byte {
	key := make([]byte, 91)
	_, _ = rand.Read(key)
	return key
}

// S03: a join token used by concurrent attestations, each with its own key,
// makes one agent. That one's key may come again after a lost reply; none of the
// others ever may.
func TestS03_JoinTokenMakesOneAgent(t *testing.T) {
	t.Parallel()
	for servers := range 3 {
		t.Run(fmt.Sprintf("%d servers", servers+1), func(t *testing.T) {
			t.Parallel()
			s := openBolt(t, filepath.Join(t.TempDir(), "store.db"))
			var list []*Registry
			for range servers + 1 {
				list = append(list, registryOn(t, s))
			}
			oneTokenManyKeys(t, list)
		})
	}
}

func oneTokenManyKeys(t *testing.T, servers []*Registry) {
	r := servers[0]
	newToken(t, r, "tok")
	const attempts = 200
	keys := make([][]byte, attempts)
	errs := make([]error, attempts)
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i := range attempts {
		keys[i] = newKey()
		wg.Go(func() {
			<-begin
			a := newAgent("tok")
			a.Serial = fmt.Sprint(i)
			_, errs[i] = servers[i%len(servers)].AttestAgent(t.Context(), a, "tok", keys[i])
		})
	}
	close(begin)
	wg.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner < 0:
			winner = i
		case err == nil:
			t.Errorf("attempts %d and %d both succeeded", winner, i)
		case !errors.Is(err, ErrTokenUsed) || !errors.Is(err, ErrTokenRefused):
			t.Errorf("attempt %d: want ErrTokenUsed, got %v", i, err)
		}
	}
	if winner < 0 {
		t.Fatal("nobody succeeded")
	}
	a, err := r.LoadAgent(t.Context(), newAgent("tok").ID)
	if err != nil || a.Serial != fmt.Sprint(winner) {
		t.Fatalf("agent is %+v, %v; want the one of attempt %d", a, err, winner)
	}
	again := newAgent("tok")
	again.Serial = "again"
	if _, err := r.AttestAgent(t.Context(), again, "tok", keys[winner]); err != nil {
		t.Errorf("the same key again: %v", err)
	}
	for i, key := range keys {
		if i == winner {
			continue
		}
		if _, err := r.AttestAgent(t.Context(), newAgent("tok"), "tok", key); !errors.Is(err, ErrTokenUsed) {
			t.Fatalf("key %d again: want ErrTokenUsed, got %v", i, err)
		}
	}
	checkTables(t, r.store)
}

// S03: a crash at any step leaves the token usable by the one key.
func TestS03_LostReplyBurnsNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []crash{{before: true}, {after: true}} {
		path := filepath.Join(t.TempDir(), "store.db")
		s := openBolt(t, path)
		r := registryOn(t, s)
		newToken(t, r, "tok")
		c.Store = s
		r.store = &c
		key := newKey()
		if _, err := r.AttestAgent(t.Context(), newAgent("tok"), "tok", key); !errors.Is(err, store.ErrUnavailable) {
			t.Fatalf("want the crash, got %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		r = registryOn(t, openBolt(t, path))
		if c.after {
			if _, err := r.AttestAgent(t.Context(), newAgent("tok"), "tok", newKey()); !errors.Is(err, ErrTokenUsed) {
				t.Errorf("another key after the crash: want ErrTokenUsed, got %v", err)
			}
		}
		if _, err := r.AttestAgent(t.Context(), newAgent("tok"), "tok", key); err != nil {
			t.Errorf("the same key after the crash (before %t, after %t): %v", c.before, c.after, err)
		}
	}
}

func TestAttestAgentRefuses(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	key := newKey()
	attest := func(token string, key []byte) error {
		before := content(t, r.store)
		_, err := r.AttestAgent(t.Context(), newAgent(token), token, key)
		if err != nil {
			if diff := cmp.Diff(before, content(t, r.store)); diff != "" {
				t.Errorf("refused (%v), and yet changed:\n%s", err, diff)
			}
		}
		return err
	}
	if err := attest("unknown", key); !errors.Is(err, ErrTokenUnknown) {
		t.Errorf("unknown token: got %v", err)
	}
	if err := attest("nokey", nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("no key: got %v", err)
	}
	newToken(t, r, "deleted")
	if err := attest("deleted", key); err != nil {
		t.Fatal(err)
	}
	if err := r.DeleteAgent(t.Context(), newAgent("deleted").ID); err != nil {
		t.Fatal(err)
	}
	if err := attest("deleted", key); !errors.Is(err, ErrTokenUsed) {
		t.Errorf("evicted agent with its token: want ErrTokenUsed, got %v", err)
	}
	newToken(t, r, "banned")
	if err := attest("banned", key); err != nil {
		t.Fatal(err)
	}
	if err := r.BanAgent(t.Context(), newAgent("banned").ID); err != nil {
		t.Fatal(err)
	}
	if err := attest("banned", key); !errors.Is(err, ErrBanned) {
		t.Errorf("banned agent: got %v", err)
	}
	if err := attest("banned", newKey()); !errors.Is(err, ErrBanned) {
		t.Errorf("banned agent with another key: got %v", err)
	}
	once := newAgent("once")
	once.CanReattest = false
	for i, want := range []error{nil, ErrEvidenceUsed} {
		if _, err := r.AttestAgent(t.Context(), once, "", nil); !errors.Is(err, want) {
			t.Errorf("evidence for one use, time %d: got %v", i+1, err)
		}
	}
	if _, err := r.AttestAgent(t.Context(), newAgent("banned"), "", nil); !errors.Is(err, ErrBanned) {
		t.Errorf("banned agent without a token: got %v", err)
	}
	stranger := newAgent("x")
	stranger.ID = id("/not/an/agent")
	if _, err := r.AttestAgent(t.Context(), stranger, "", nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("ID outside the agents' path: got %v", err)
	}
}

// S05: no error of ours says the token.
func TestErrorsDoNotSayTheToken(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	const secret = "canary secret/"
	_, err := r.CreateJoinToken(t.Context(), secret, time.Hour, nil)
	if !errors.Is(err, ErrInvalid) || strings.Contains(err.Error(), "canary") {
		t.Errorf("creating: got %v", err)
	}
	a := newAgent("x")
	_, err = r.AttestAgent(t.Context(), a, secret, newKey())
	if !errors.Is(err, ErrTokenUnknown) || strings.Contains(err.Error(), "canary") {
		t.Errorf("attesting: got %v", err)
	}
}

func TestCreateJoinToken(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	tok := newToken(t, r, "tok")
	if left := time.Until(tok.ExpiresAt); left < time.Hour-time.Second || left > time.Hour+time.Second {
		t.Errorf("expires in %v, want an hour", left)
	}
	if _, err := r.CreateJoinToken(t.Context(), "tok", time.Hour, nil); !errors.Is(err, ErrExists) {
		t.Errorf("the same token: want ErrExists, got %v", err)
	}
	before := content(t, r.store)
	if _, err := r.CreateJoinToken(t.Context(), "tok2", time.Hour, tokenAlias("tok")); !errors.Is(err, ErrExists) {
		t.Errorf("an alias that exists: want ErrExists, got %v", err)
	}
	for _, bad := range []struct {
		token string
		ttl   time.Duration
	}{{"", time.Hour}, {"a/b", time.Hour}, {"..", time.Hour}, {strings.Repeat("x", 256), time.Hour}, {"ok", 0}} {
		if _, err := r.CreateJoinToken(t.Context(), bad.token, bad.ttl, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("token of %d bytes, ttl %v: want ErrInvalid, got %v", len(bad.token), bad.ttl, err)
		}
	}
	if diff := cmp.Diff(before, content(t, r.store)); diff != "" {
		t.Errorf("refused, and yet changed:\n%s", diff)
	}
	for key, value := range before {
		if key[:2] == tableToken && (strings.Contains(key, "tok") || strings.Contains(value, "tok")) {
			t.Error("the token is stored in clear")
		}
	}
	checkTables(t, r.store)
}

// S14: whatever way a node goes, its alias goes with it, in the same Update.
func TestS14_AliasGoesWithItsNode(t *testing.T) {
	t.Parallel()
	ways := map[string]func(r *Registry, a *Agent) error{
		"deleted": func(r *Registry, a *Agent) error { return r.DeleteAgent(t.Context(), a.ID) },
		"banned":  func(r *Registry, a *Agent) error { return r.BanAgent(t.Context(), a.ID) },
		"banned, then deleted": func(r *Registry, a *Agent) error {
			return errors.Join(r.BanAgent(t.Context(), a.ID), r.DeleteAgent(t.Context(), a.ID))
		},
	}
	for name, way := range ways {
		r := newRegistry(t)
		tok := newToken(t, r, "tok")
		a, err := r.AttestAgent(t.Context(), newAgent("tok"), "tok", newKey())
		if err != nil {
			t.Fatal(err)
		}
		if a.AliasEntryID != tok.AliasEntryID || a.AliasEntryID == "" {
			t.Fatalf("alias of the agent is %q, of the token %q", a.AliasEntryID, tok.AliasEntryID)
		}
		rev := a.ModRevision
		if err := way(r, a); err != nil {
			t.Fatal(err)
		}
		for key := range content(t, r.store) {
			if key[:2] == tableEntry || key[:2] == tableUnique {
				t.Errorf("%s: key %q is left", name, key)
			}
		}
		checkTables(t, r.store)
		for batch, err := range r.store.Watch(t.Context(), "", rev) {
			if err != nil {
				t.Fatal(err)
			}
			if len(batch.Events) < 3 {
				t.Errorf("%s: the first Update changed %d keys; agent, alias and its unique key go together", name, len(batch.Events))
			}
			break
		}
	}
}

// S14: what the operator made of the alias since is the operator's.
func TestS14_AliasGivenToAnotherParentStays(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	tok := newToken(t, r, "tok")
	a, err := r.AttestAgent(t.Context(), newAgent("tok"), "tok", newKey())
	if err != nil {
		t.Fatal(err)
	}
	res := r.UpdateEntries(t.Context(), []EntryUpdate{{tok.AliasEntryID, func(e *Entry) error { e.ParentID = id("/mine"); return nil }}})
	if res[0].Err != nil {
		t.Fatal(res[0].Err)
	}
	if err := r.DeleteAgent(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
	if content(t, r.store)[entryKey(tok.AliasEntryID)] == "" {
		t.Error("the entry is gone")
	}
	checkTables(t, r.store)
}

// S31: an agent holds some serial after each step of renewal, whether the reply
// arrived or not; that serial is always accepted, and an old one never again
// once its successor was used.
func TestS31_RenewalSurvivesACrashAtEachStep(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"none", "before issue", "after issue", "before use", "after use"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "store.db")
			s := openBolt(t, path)
			r := registryOn(t, s)
			a, err := r.AttestAgent(t.Context(), newAgent("x"), "", nil)
			if err != nil {
				t.Fatal(err)
			}
			die := &crash{Store: s}
			r.store = die
			held := "1"

			// Step 1: the server notes the next serial, then replies.
			die.before, die.after = at == "before issue", at == "after issue"
			expiry := a.NotAfter.Add(time.Hour)
			if _, err := r.UpdateAgent(t.Context(), a.ID, func(a *Agent) error { a.Issued("2", expiry); return nil }); err == nil {
				held = "2"
			}
			// Step 2: the server notes the first use of what the agent holds.
			die.before, die.after = at == "before use", at == "after use"
			use := func(a *Agent) error { a.Used(held); return nil }
			_, _ = r.UpdateAgent(t.Context(), a.ID, use)

			// The server comes back.
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			r = registryOn(t, openBolt(t, path))
			got, err := r.LoadAgent(t.Context(), a.ID)
			if err != nil || !got.Accepts(held) {
				t.Fatalf("serial %s, which the agent holds, is not accepted: %+v, %v", held, got, err)
			}
			// It goes on from there: uses it, renews, uses the new one.
			for _, change := range []func(*Agent) error{use, func(a *Agent) error { a.Issued("3", expiry); return nil }} {
				if got, err = r.UpdateAgent(t.Context(), a.ID, change); err != nil {
					t.Fatal(err)
				}
			}
			if !got.Accepts(held) || !got.Accepts("3") {
				t.Errorf("between issue and first use, want %s and 3 accepted: %+v", held, got)
			}
			if got, err = r.UpdateAgent(t.Context(), a.ID, func(a *Agent) error { a.Used("3"); return nil }); err != nil {
				t.Fatal(err)
			}
			for _, old := range []string{"1", "2", ""} {
				if got.Accepts(old) {
					t.Errorf("serial %q is accepted after 3 was used", old)
				}
			}
			if !got.Accepts("3") || !got.NotAfter.Equal(expiry) || got.NextSerial != "" || !got.NextNotAfter.IsZero() {
				t.Errorf("in the end: %+v", got)
			}
		})
	}
}

func TestUpdateAgent(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	a, err := r.AttestAgent(t.Context(), newAgent("x"), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.UpdateAgent(t.Context(), a.ID, func(a *Agent) error {
		a.Version, a.ID, a.Banned, a.AliasEntryID = "1.2", id("/spire/agent/x/y"), true, "z"
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := a.Clone()
	want.Version = "1.2"
	if diff := cmp.Diff(want, got, comparing, cmpopts.IgnoreFields(Agent{}, "ModRevision")); diff != "" {
		t.Errorf("updated (-want +got):\n%s", diff)
	}
	if got.ModRevision <= a.ModRevision {
		t.Errorf("revision %d after %d", got.ModRevision, a.ModRevision)
	}
	same, err := r.UpdateAgent(t.Context(), a.ID, func(a *Agent) error { a.Version = "1.2"; return nil })
	if head, _ := r.store.Head(t.Context()); err != nil || head != got.ModRevision || same.ModRevision != got.ModRevision {
		t.Errorf("no change: head %d, agent at %d, want %d: %v", head, same.ModRevision, got.ModRevision, err)
	}
	errMine := errors.New("mine")
	if _, err := r.UpdateAgent(t.Context(), a.ID, func(*Agent) error { return errMine }); !errors.Is(err, errMine) {
		t.Errorf("want the caller's error, got %v", err)
	}
	for _, missing := range []string{"/spire/agent/x/none"} {
		if _, err := r.UpdateAgent(t.Context(), id(missing), func(*Agent) error { return nil }); !errors.Is(err, ErrNotFound) {
			t.Errorf("update: want ErrNotFound, got %v", err)
		}
		if err := r.BanAgent(t.Context(), id(missing)); !errors.Is(err, ErrNotFound) {
			t.Errorf("ban: want ErrNotFound, got %v", err)
		}
		if err := r.DeleteAgent(t.Context(), id(missing)); !errors.Is(err, ErrNotFound) {
			t.Errorf("delete: want ErrNotFound, got %v", err)
		}
		if _, err := r.LoadAgent(t.Context(), id(missing)); !errors.Is(err, ErrNotFound) {
			t.Errorf("load: want ErrNotFound, got %v", err)
		}
	}
	if err := r.BanAgent(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := r.UpdateAgent(t.Context(), a.ID, func(a *Agent) error { a.Version = "3"; return nil }); !errors.Is(err, ErrBanned) {
		t.Errorf("banned agent: want ErrBanned, got %v", err)
	}
}
