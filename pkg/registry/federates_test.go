package registry

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/store"
)

// federated makes n entries that federate with the trust domains, whose bundles
// it sets.
func federated(t testing.TB, r *Registry, n int, domains ...spiffeid.TrustDomain) []*Entry {
	t.Helper()
	for _, td := range domains {
		if res := r.UpdateBundles(t.Context(), []BundleUpdate{{td, setTo(&Bundle{SequenceNumber: 1})}}); res[0].Err != nil {
			t.Fatal(res[0].Err)
		}
	}
	batch := make([]*Entry, n)
	for i := range batch {
		batch[i] = newEntry("/p", fmt.Sprintf("/f/%d/%d", rand.Int64(), i))
		batch[i].FederatesWith = domains
	}
	return mustCreate(t, r, batch...)
}

// watchFederation follows the log and reports every revision at which an entry
// federates with a trust domain that has no bundle.
func watchFederation(t testing.TB, r *Registry) (seen *atomic.Uint64) {
	t.Helper()
	entries, bundles := map[string]*Entry{}, map[spiffeid.TrustDomain]bool{}
	seen = &atomic.Uint64{}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := r.Follow(ctx, func(c *Commit) error {
			for _, ch := range c.Entries {
				if delete(entries, ch.ID); ch.Now != nil {
					entries[ch.ID] = ch.Now.Entry()
				}
			}
			for _, ch := range c.Bundles {
				bundles[ch.TrustDomain] = ch.Now != nil
			}
			for id, e := range entries {
				for _, td := range e.FederatesWith {
					if !bundles[td] {
						t.Errorf("revision %d: entry %s federates with %s, which has no bundle", c.Revision, id, td)
					}
				}
			}
			seen.Store(uint64(c.Revision))
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Follow: %v", err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return seen
}

func waitSeen(t testing.TB, r *Registry, seen *atomic.Uint64) {
	t.Helper()
	head, err := r.store.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for seen.Load() < uint64(head) {
		time.Sleep(time.Millisecond)
	}
}

// More entries than an Update, or a page, can hold.
func TestDeleteBundleModes(t *testing.T) {
	t.Parallel()
	const n = MaxPage + 300
	third := spiffeid.RequireTrustDomainFromString("third.org")
	for mode, want := range map[DeleteMode]struct{ entries, left int }{
		Restrict:   {2*n + 1, 2*n + 1},
		Dissociate: {2*n + 1, 0},
		Delete:     {n + 1, 0},
	} {
		t.Run(fmt.Sprint(mode), func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			ix := follow(t, r)
			seen := watchFederation(t, r)
			federated(t, r, n, third)
			federated(t, r, n, other, third)
			mustCreate(t, r, newEntry("/p", "/alone"))
			err := r.DeleteBundle(t.Context(), other, mode, ix, freshOf(r, ix))
			refused, _ := errors.AsType[*FederatedError](err)
			if (mode == Restrict) != (refused != nil) || err != nil && (refused == nil || refused.Entries != n) {
				t.Fatalf("got %v", err)
			}
			caughtUp(t, r, ix)
			if _, ok := ix.Bundle(other); ok != (mode == Restrict) {
				t.Errorf("bundle is there: %t", ok)
			}
			count := func(td spiffeid.TrustDomain) int {
				return ix.CountEntries(EntryFilter{FederatesWith: []spiffeid.TrustDomain{td}, FederatesWithMatch: MatchAny}, time.Now())
			}
			all := ix.CountEntries(EntryFilter{}, time.Now())
			wantOther, wantThird := 0, 2*n
			if mode == Restrict {
				wantOther = n
			}
			if mode == Delete {
				wantThird = n
			}
			if all != want.entries || count(other) != wantOther || count(third) != wantThird {
				t.Errorf("want %d entries, %d and %d federated, got %d, %d and %d", want.entries, wantOther, wantThird, all, count(other), count(third))
			}
			if _, marked := content(t, r.store)[keyDissolving]; marked {
				t.Error("the mark is still there")
			}
			checkTables(t, r.store)
			waitSeen(t, r, seen)
		})
	}
}

// 2,000 entries, or 100,000 with SOAK: what it takes grows with their number, and
// writers of other things go on meanwhile.
func TestDeleteBundleOfMany(t *testing.T) {
	t.Parallel()
	n := 2000
	if os.Getenv("SOAK") != "" {
		n = 100_000
	}
	r := newRegistry(t)
	ix := follow(t, r)
	federated(t, r, n, other)
	done := make(chan struct{})
	var wg sync.WaitGroup
	var slowest time.Duration
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			begin := time.Now()
			mustCreate(t, r, newEntry("/p", fmt.Sprintf("/beside/%d", i)))
			slowest = max(slowest, time.Since(begin))
		}
	})
	begin := time.Now()
	err := r.DeleteBundle(t.Context(), other, Dissociate, ix, freshOf(r, ix))
	took := time.Since(begin)
	close(done)
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d entries dissociated in %v; a write beside took %v at most", n, took, slowest)
	if slowest > 5*time.Second {
		t.Errorf("a write waited %v", slowest)
	}
}

func TestDeleteBundleRefuses(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	ix := follow(t, r)
	federated(t, r, 1, other)
	for _, tt := range []struct {
		td   spiffeid.TrustDomain
		want error
	}{{td, ErrInvalid}, {domain(1), ErrNotFound}} {
		if err := r.DeleteBundle(t.Context(), tt.td, Delete, ix, freshOf(r, ix)); !errors.Is(err, tt.want) {
			t.Errorf("%s: want %v, got %v", tt.td, tt.want, err)
		}
	}
	// An index that does not get there: nothing is deleted.
	away := func(context.Context) error { return store.ErrUnavailable }
	if err := r.DeleteBundle(t.Context(), other, Delete, ix, away); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if _, err := r.LoadBundle(t.Context(), other); err != nil {
		t.Error(err)
	}
	// The mark that was left is in nobody's way.
	federated(t, r, 1, other)
	if err := r.DeleteBundle(t.Context(), other, Dissociate, ix, freshOf(r, ix)); err != nil {
		t.Error(err)
	}
}

// An entry that comes to federate with the bundle after the index was looked at
// is not overlooked.
func TestDeleteBundleSeesLateEntries(t *testing.T) {
	t.Parallel()
	for name, join := range map[string]func(t *testing.T, r *Registry, e *Entry){
		"created": func(t *testing.T, r *Registry, _ *Entry) { federated(t, r, 1, other) },
		"updated": func(t *testing.T, r *Registry, e *Entry) {
			res := r.UpdateEntries(t.Context(), []EntryUpdate{{e.ID, func(e *Entry) error {
				e.FederatesWith = []spiffeid.TrustDomain{other}
				return nil
			}}})
			if res[0].Err != nil {
				t.Error(res[0].Err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			seen := watchFederation(t, r)
			federated(t, r, 1, other)
			alone := mustCreate(t, r, newEntry("/p", "/alone"))[0]
			calls := 0
			ix, fresh := frozen(r, func() {
				if calls++; calls == 1 {
					join(t, r, alone)
				}
			})
			if err := r.DeleteBundle(t.Context(), other, Dissociate, ix, fresh); err != nil {
				t.Fatal(err)
			}
			if calls != 2 {
				t.Errorf("want two attempts, got %d", calls)
			}
			waitSeen(t, r, seen)
			if _, err := r.LoadBundle(t.Context(), other); !errors.Is(err, ErrNotFound) {
				t.Errorf("want ErrNotFound, got %v", err)
			}
		})
	}
}

// frozen is an index that knows what there was at each call of fresh, and then
// calls after.
func frozen(r *Registry, after func()) (ix *Index, fresh func(context.Context) error) {
	ix = NewIndex()
	return ix, func(ctx context.Context) error {
		errOne := errors.New("one commit is enough")
		err := r.Follow(ctx, func(c *Commit) error {
			ix.Apply(c)
			return errOne
		})
		if !errors.Is(err, errOne) {
			return err
		}
		after()
		return nil
	}
}

// An entry that let go of the bundle after the index was looked at is left alone.
func TestDeleteBundleSparesWhoLetGo(t *testing.T) {
	t.Parallel()
	for _, mode := range []DeleteMode{Dissociate, Delete} {
		r := newRegistry(t)
		e := federated(t, r, 1, other)[0]
		ix, fresh := frozen(r, func() {
			res := r.UpdateEntries(t.Context(), []EntryUpdate{{e.ID, func(e *Entry) error {
				e.FederatesWith = nil
				return nil
			}}})
			e = res[0].Entry
		})
		if err := r.DeleteBundle(t.Context(), other, mode, ix, fresh); err != nil {
			t.Fatal(err)
		}
		now, _, _ := tablesOf(t, r.store)
		if got := now[e.ID]; got == nil || got.RevisionNumber != e.RevisionNumber {
			t.Errorf("mode %d: want the entry as it was left, got %+v", mode, got)
		}
	}
}

// Entries that come without end: the deletion gives up, and says so.
func TestDeleteBundleGivesUp(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	ix := follow(t, r)
	federated(t, r, 1, other)
	calls := 0
	fresh := func(ctx context.Context) error {
		calls++
		err := freshOf(r, ix)(ctx)
		federated(t, r, 1, other)
		return err
	}
	if err := r.DeleteBundle(t.Context(), other, Delete, ix, fresh); !errors.Is(err, ErrConflict) || calls != deleteAttempts {
		t.Errorf("after %d attempts: %v", calls, err)
	}
	if _, err := r.LoadBundle(t.Context(), other); err != nil {
		t.Error(err)
	}
}

// failing fails the nth Update from now on, of the store or under a lock, with
// its changes committed or not.
type failing struct {
	store.Store
	left      atomic.Int64
	committed bool
}

func (f *failing) Update(ctx context.Context, fn func(store.RWTx) error) (store.Revision, error) {
	return f.update(ctx, f.Store.Update, fn)
}

func (f *failing) update(ctx context.Context, do func(context.Context, func(store.RWTx) error) (store.Revision, error), fn func(store.RWTx) error) (store.Revision, error) {
	if f.left.Add(-1) != 0 {
		return do(ctx, fn)
	}
	if f.committed {
		if _, err := do(ctx, fn); err != nil {
			return 0, err
		}
	}
	return 0, errCrash
}

func (f *failing) Lock(ctx context.Context, name string) (store.Lock, error) {
	l, err := f.Store.Lock(ctx, name)
	return &failingLock{l, f}, err
}

type failingLock struct {
	store.Lock
	store *failing
}

func (l *failingLock) Update(ctx context.Context, fn func(store.RWTx) error) (store.Revision, error) {
	return l.store.update(ctx, l.Lock.Update, fn)
}

// A deletion that dies at any of its Updates leaves no entry without its bundle,
// and the next call ends it.
func TestDeleteBundleCrashes(t *testing.T) {
	t.Parallel()
	for _, mode := range []DeleteMode{Dissociate, Delete} {
		for _, committed := range []bool{false, true} {
			for nth := int64(1); ; nth++ {
				f := &failing{Store: openBolt(t, filepath.Join(t.TempDir(), "store.db")), committed: committed}
				r := registryOn(t, f)
				ix := follow(t, r)
				seen := watchFederation(t, r)
				federated(t, r, 40, other)
				f.left.Store(nth)
				err := r.DeleteBundle(t.Context(), other, mode, ix, freshOf(r, ix))
				died := f.left.Load() <= 0
				if died != errors.Is(err, store.ErrUnavailable) {
					t.Fatalf("mode %d, update %d: %v", mode, nth, err)
				}
				waitSeen(t, r, seen)
				if !died {
					break
				}
				err = r.DeleteBundle(t.Context(), other, mode, ix, freshOf(r, ix))
				if err != nil && !errors.Is(err, ErrNotFound) {
					t.Errorf("mode %d, after the crash at update %d: %v", mode, nth, err)
				}
				waitSeen(t, r, seen)
				if _, err := r.LoadBundle(t.Context(), other); !errors.Is(err, ErrNotFound) {
					t.Errorf("mode %d, after the crash at update %d: the bundle is there: %v", mode, nth, err)
				}
				checkTables(t, f)
			}
		}
	}
}

// Everybody at once: two servers, entries that come, change and go, bundles that
// are set and deleted in every mode. At no revision does an entry federate with a
// bundle that is not there.
func TestFederationHoldsUnderLoad(t *testing.T) {
	t.Parallel()
	s := openBolt(t, filepath.Join(t.TempDir(), "store.db"))
	servers := []*Registry{registryOn(t, s), registryOn(t, s)}
	indexes := []*Index{follow(t, servers[0]), follow(t, servers[1])}
	seen := watchFederation(t, servers[0])
	domains := []spiffeid.TrustDomain{domain(0), domain(1), domain(2)}
	var deleted, refused, joined atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(1500 * time.Millisecond)
	for w := range 8 {
		rnd := rand.New(rand.NewPCG(1, uint64(w)))
		r, ix := servers[w%2], indexes[w%2]
		some := func() []spiffeid.TrustDomain { return domains[rnd.IntN(3):][:1] }
		wg.Go(func() {
			for n := 0; time.Now().Before(end); n++ {
				switch td := domains[rnd.IntN(3)]; w {
				case 0, 1:
					err := r.DeleteBundle(t.Context(), td, DeleteMode(rnd.IntN(3)), ix, freshOf(r, ix))
					if _, federated := errors.AsType[*FederatedError](err); err == nil {
						deleted.Add(1)
					} else if federated {
						refused.Add(1)
					} else if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrConflict) {
						t.Error(err)
					}
				case 2, 3:
					if res := r.UpdateBundles(t.Context(), []BundleUpdate{{td, setTo(&Bundle{SequenceNumber: uint64(n)})}}); res[0].Err != nil {
						t.Error(res[0].Err)
					}
				default:
					e := newEntry("/p", fmt.Sprintf("/w/%d/%d", w, n))
					e.ID, e.FederatesWith = fmt.Sprintf("e%d", rnd.IntN(50)), some()
					res := r.CreateEntries(t.Context(), []*Entry{e})[0]
					if res.Err == nil {
						joined.Add(1)
					}
					res = r.UpdateEntries(t.Context(), []EntryUpdate{{fmt.Sprintf("e%d", rnd.IntN(50)), func(e *Entry) error {
						e.FederatesWith = some()
						return nil
					}}})[0]
					if res.Err == nil {
						joined.Add(1)
					}
				}
			}
		})
	}
	wg.Wait()
	waitSeen(t, servers[0], seen)
	checkTables(t, s)
	if deleted.Load() == 0 || refused.Load() == 0 || joined.Load() == 0 {
		t.Errorf("the test did nothing: %d deleted, %d refused, %d joined", deleted.Load(), refused.Load(), joined.Load())
	}
	t.Logf("%d deleted, %d refused, %d joined", deleted.Load(), refused.Load(), joined.Load())
}
