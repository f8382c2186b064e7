package engine_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/engine"
)

// That engines keep the contract with these parts is storetest's to say.

func batch(rev store.Revision, value string) store.Batch {
	return store.Batch{Revision: rev, Events: []store.Event{{Key: "k", Value: []byte(value)}}}
}

// first is what a watch that must not wait gives first.
func first(r *engine.Ring, after store.Revision) (store.Batch, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for b, err := range r.Watch(ctx, "", after) {
		return b, err
	}
	return store.Batch{}, nil
}

// TestRingIsBounded: in batches and in bytes; who is behind is told so.
func TestRingIsBounded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		batches, bytes int
		value          string
	}{
		"batches": {2, 1 << 20, "v"},
		"bytes":   {1 << 20, 1000, strings.Repeat("v", 300)},
	} {
		r := engine.NewRing(10, c.batches, c.bytes)
		for rev := range store.Revision(4) {
			r.Publish(batch(20+2*rev, c.value)) // revisions have gaps in etcd
		}
		if n, size := r.Size(); n != 2 || size > c.bytes {
			t.Errorf("%s: %d batches of %d bytes are kept, want 2", name, n, size)
		}
		if _, err := first(r, 21); !errors.Is(err, store.ErrCompacted) {
			t.Errorf("%s: after 21: %v", name, err)
		}
		if b, err := first(r, 22); err != nil || b.Revision != 24 {
			t.Errorf("%s: after 22: %+v, %v, want 24", name, b, err)
		}
		r.Reset(30)
		if _, err := first(r, 26); !errors.Is(err, store.ErrCompacted) {
			t.Errorf("%s: after 26, reset to 30: %v", name, err)
		}
		if head, err := r.Head(); head != 30 || err != nil {
			t.Errorf("%s: head %d, %v", name, head, err)
		}
	}
}

// TestRingEnds: with the first reason, or with being closed, which leaves what it
// has reached to those who read.
func TestRingEnds(t *testing.T) {
	t.Parallel()
	r := engine.NewRing(0, 8, 1<<20)
	r.Publish(batch(1, "v"))
	torn := errors.New("torn")
	r.End(torn)
	r.End(errors.New("another"))
	if err := r.Wait(t.Context(), 1); !errors.Is(err, torn) {
		t.Errorf("Wait: %v", err)
	}
	r.End(store.ErrClosed)
	if err := r.Wait(t.Context(), 1); err != nil {
		t.Errorf("closed, Wait for what was reached: %v", err)
	}
	if err := r.Wait(t.Context(), 2); !errors.Is(err, store.ErrClosed) {
		t.Errorf("closed, Wait for more: %v", err)
	}
	if _, err := first(r, 0); !errors.Is(err, store.ErrClosed) {
		t.Errorf("closed, watch: %v", err)
	}
}

// TestRingWaits: for a revision that is not there yet, until the context ends.
func TestRingWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := engine.NewRing(0, 8, 1<<20)
		done := make(chan store.Revision)
		go func() {
			for b, err := range r.Watch(t.Context(), "", 5) {
				if err != nil {
					t.Error(err)
				}
				done <- b.Revision
				return
			}
		}()
		r.Publish(batch(5, "v"))
		synctest.Wait()
		r.Publish(batch(6, "v"))
		if rev := <-done; rev != 6 {
			t.Errorf("the watch after 5 gave %d", rev)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.Wait(ctx, 7); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait: %v", err)
		}
	})
}

// TestBufferRoom: before each value, and in no count of bytes.
func TestBufferRoom(t *testing.T) {
	t.Parallel()
	b := engine.Buffer{Room: 8}
	b.Put("b", []byte("12"))
	b.Put("a", nil)
	b.Delete("c")
	b.Put("b", []byte("345"))
	if b.Err() != nil || b.Bytes() != 6 {
		t.Errorf("%d bytes, %v, want 6", b.Bytes(), b.Err())
	}
	var got []string
	for _, w := range b.Writes() {
		if w.IsDelete() {
			got = append(got, w.Key+" is deleted")
		} else {
			got = append(got, w.Key+"="+string(w.Raw[8:]))
		}
	}
	if text := strings.Join(got, ", "); text != "a=, b=345, c is deleted" {
		t.Errorf("writes: %s", text)
	}
}
