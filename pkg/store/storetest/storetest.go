package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/pkg/store"
)

// Opener opens one and the same store each time it is called; the first call
// makes it. It registers Close with t and takes store.ErrClosed for success.
type Opener func(t testing.TB) store.Store

// Engine is how the suite makes stores.
type Engine struct {
	// New makes a place for an empty store and returns what opens it.
	New func(t testing.TB) Opener
	// Restore makes a store from what Backup wrote.
	Restore func(t testing.TB, backup io.Reader) Opener
	// Compact makes the store forget its history up to its head.
	Compact func(t testing.TB, s store.Store)
	// Shared says that a store can be open more than once at a time; the
	// concurrent tests then use two handles.
	Shared bool
}

// Run tests the engine against the contract.
func Run(t *testing.T, e Engine) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Engine)
	}{
		{"Values", testValues},
		{"Revisions", testRevisions},
		{"EmptyUpdate", testEmptyUpdate},
		{"FailedUpdate", testFailedUpdate},
		{"Panic", testPanic},
		{"Neighbours", testNeighbours},
		{"Info", testInfo},
		{"Scan", testScan},
		{"ScanSeesWrites", testScanSeesWrites},
		{"ScanWhileWriting", testScanWhileWriting},
		{"LimitOps", testLimitOps},
		{"LimitBytes", testLimitBytes},
		{"LimitKey", testLimitKey},
		{"WriteSkew", testWriteSkew},
		{"Transfers", testTransfers},
		{"Snapshot", testSnapshot},
		{"Linearizable", testLinearizable},
		{"Model", testModel},
		{"WatchOrder", testWatchOrder},
		{"WatchResume", testWatchResume},
		{"WatchWaits", testWatchWaits},
		{"WatchCompacted", testWatchCompacted},
		{"WatchAhead", testWatchAhead},
		{"WatchSlow", testWatchSlow},
		{"WatchHandOver", testWatchHandOver},
		{"Cancel", testCancel},
		{"Close", testClose},
		{"Reopen", testReopen},
		{"Backup", testBackup},
		{"Lock", testLock},
		{"LockExcludes", testLockExcludes},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, e)
		})
	}
}

// fresh opens a new store.
func (e Engine) fresh(t testing.TB) store.Store { return e.New(t)(t) }

// handles opens a new store as often as n callers at once need it.
func (e Engine) handles(t testing.TB, n int) []store.Store {
	open := e.New(t)
	all := make([]store.Store, n)
	for i := range all {
		if i == 0 || e.Shared && i == 1 {
			all[i] = open(t)
			continue
		}
		all[i] = all[i%2]
		if !e.Shared {
			all[i] = all[0]
		}
	}
	return all
}

// update is an Update that must succeed.
func update(t testing.TB, s store.Store, fn func(store.RWTx)) store.Revision {
	t.Helper()
	rev, err := s.Update(t.Context(), func(tx store.RWTx) error {
		fn(tx)
		return nil
	})
	if err != nil {
		t.Fatalf("Update: %v", err)
	}
	return rev
}

// put writes pairs of key and value in one Update.
func put(t testing.TB, s store.Store, pairs ...string) store.Revision {
	t.Helper()
	return update(t, s, func(tx store.RWTx) {
		for i := 0; i < len(pairs); i += 2 {
			tx.Put(pairs[i], []byte(pairs[i+1]))
		}
	})
}

// head is a Head that must succeed.
func head(t testing.TB, s store.Store) store.Revision {
	t.Helper()
	rev, err := s.Head(t.Context())
	if err != nil {
		t.Fatalf("Head: %v", err)
	}
	return rev
}

// content reads all keys with the prefix, and the revision they were read at.
func content(ctx context.Context, s store.Store, prefix string) (map[string]string, store.Revision, error) {
	all := make(map[string]string)
	var rev store.Revision
	err := s.View(ctx, func(tx store.Tx) error {
		rev = tx.Revision()
		for kv, err := range tx.Scan(prefix, "") {
			if err != nil {
				return err
			}
			all[kv.Key] = string(kv.Value)
		}
		return nil
	})
	return all, rev, err
}

// wantContent compares all keys with the prefix.
func wantContent(t testing.TB, s store.Store, prefix string, want map[string]string) store.Revision {
	t.Helper()
	got, rev, err := content(t.Context(), s, prefix)
	if err != nil {
		t.Fatalf("View: %v", err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("content under %q (-want +got):\n%s", prefix, diff)
	}
	return rev
}

// scanned collects a scan as "key=value" in order.
func scanned(tx store.Tx, prefix, after string) ([]string, error) {
	got := []string{}
	for kv, err := range tx.Scan(prefix, after) {
		if err != nil {
			return nil, err
		}
		got = append(got, kv.Key+"="+string(kv.Value))
	}
	return got, nil
}

// apply plays batches onto a map, checking the form of each.
func apply(state map[string]string, b store.Batch) error {
	last := ""
	if len(b.Events) == 0 {
		return fmt.Errorf("batch %d has no events", b.Revision)
	}
	for _, e := range b.Events {
		if e.Key <= last {
			return fmt.Errorf("batch %d: event %q after %q", b.Revision, e.Key, last)
		}
		last = e.Key
		if e.Deleted() {
			if _, ok := state[e.Key]; !ok {
				return fmt.Errorf("batch %d deletes %q, which is not there", b.Revision, e.Key)
			}
			delete(state, e.Key)
			continue
		}
		state[e.Key] = string(e.Value)
	}
	return nil
}

// follow applies batches after a revision to a copy of state until one of
// revision until has been seen.
func follow(ctx context.Context, s store.Store, prefix string, state map[string]string, after, until store.Revision) (map[string]string, error) {
	state = maps.Clone(state)
	if after >= until {
		return state, nil
	}
	for b, err := range s.Watch(ctx, prefix, after) {
		if err != nil {
			return nil, fmt.Errorf("watching after %d: %w", after, err)
		}
		if b.Revision <= after {
			return nil, fmt.Errorf("batch %d came after %d", b.Revision, after)
		}
		after = b.Revision
		if err := apply(state, b); err != nil {
			return nil, err
		}
		if after >= until {
			break
		}
	}
	return state, nil
}

// soon is a context for what would wait for ever if the engine lost something.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// wantErr checks an error by identity.
func wantErr(t testing.TB, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}
