package storetest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/credence-id/credence/pkg/store"
)

// attempt makes an Update and says whether it was refused as too large.
func attempt(t *testing.T, s store.Store, what string, tooLarge bool, fn func(store.RWTx)) {
	t.Helper()
	before := head(t, s)
	rev, err := s.Update(t.Context(), func(tx store.RWTx) error {
		fn(tx)
		return nil
	})
	if !tooLarge {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		return
	}
	wantErr(t, what, err, store.ErrTooLarge)
	if now := head(t, s); now != before || rev != 0 {
		t.Errorf("%s: returned revision %d and moved the head from %d to %d", what, rev, before, now)
	}
}

func testLimitOps(t *testing.T, e Engine) {
	s := e.fresh(t)
	put(t, s, "there", "1")
	key := func(i int) string { return fmt.Sprintf("k/%03d", i) }
	for _, op := range []struct {
		name string
		cost int
		do   func(tx store.RWTx, i int)
	}{
		{"Put", 1, func(tx store.RWTx, i int) { tx.Put(key(i), nil) }},
		{"Get", 1, func(tx store.RWTx, i int) { _, _ = tx.Get(key(i)) }},
		{"Get and Put", 2, func(tx store.RWTx, i int) { _, _ = tx.Get(key(i)); tx.Put(key(i), nil) }},
		{"Delete", 2, func(tx store.RWTx, i int) { tx.Delete(key(i)) }},
		{"Scan", 2, func(tx store.RWTx, _ int) { _, _ = scanned(tx, "k/", "") }},
		{"the same Put twice", 1, func(tx store.RWTx, i int) { tx.Put(key(i), nil); tx.Put(key(i), []byte("x")) }},
		{"the same Get twice", 1, func(tx store.RWTx, i int) { _, _ = tx.Get(key(i)); _, _ = tx.Get(key(i)) }},
		{"Put and Get", 1, func(tx store.RWTx, i int) { tx.Put(key(i), nil); _, _ = tx.Get(key(i)) }},
		{"Put and Delete", 2, func(tx store.RWTx, i int) { tx.Put(key(i), nil); tx.Delete(key(i)) }},
	} {
		for _, n := range []int{store.MaxOps/op.cost - 1, store.MaxOps / op.cost, store.MaxOps/op.cost + 1} {
			what := fmt.Sprintf("%s %d times", op.name, n)
			attempt(t, s, what, n*op.cost > store.MaxOps, func(tx store.RWTx) {
				for i := range n {
					op.do(tx, i)
				}
			})
		}
	}
	// Many keys of one scan count nothing more.
	for i := range 2 {
		update(t, s, func(tx store.RWTx) {
			for j := range store.MaxOps {
				tx.Put(fmt.Sprintf("many/%d/%03d", i, j), nil)
			}
		})
	}
	attempt(t, s, "a scan of many keys", false, func(tx store.RWTx) {
		if all, err := scanned(tx, "many/", ""); err != nil || len(all) != 2*store.MaxOps {
			t.Errorf("scanned %d keys, %v", len(all), err)
		}
	})
	// The function cannot talk its way out.
	_, err := s.Update(t.Context(), func(tx store.RWTx) error {
		for i := range store.MaxOps + 1 {
			tx.Put(key(i), nil)
		}
		_, err := tx.Get("absent")
		return err
	})
	wantErr(t, "a function that fails after the limit", err, store.ErrTooLarge)
	attempt(t, s, "reading on after the limit", true, func(tx store.RWTx) {
		for i := range store.MaxOps + 1 {
			_, _ = tx.Get(key(i))
		}
		_, err := tx.Get("there")
		wantErr(t, "Get beyond the limit", err, store.ErrTooLarge)
		_, err = scanned(tx, "", "")
		wantErr(t, "Scan beyond the limit", err, store.ErrTooLarge)
	})
	// A View has no limit.
	if err := s.View(t.Context(), func(tx store.Tx) error {
		for range 2 * store.MaxOps {
			if _, err := tx.Get("there"); err != nil {
				return err
			}
			if _, err := scanned(tx, "there", ""); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Errorf("View with many reads: %v", err)
	}
}

func testLimitBytes(t *testing.T, e Engine) {
	s := e.fresh(t)
	for _, size := range []int{store.MaxBytes - 1, store.MaxBytes, store.MaxBytes + 1} {
		tooLarge := size > store.MaxBytes
		attempt(t, s, fmt.Sprintf("one value, %d bytes with its key", size), tooLarge, func(tx store.RWTx) {
			tx.Put("key", make([]byte, size-len("key")))
		})
		attempt(t, s, fmt.Sprintf("two values, %d bytes with their keys", size), tooLarge, func(tx store.RWTx) {
			tx.Put("1", make([]byte, 1000))
			tx.Put("2", make([]byte, size-1000-2))
		})
		attempt(t, s, fmt.Sprintf("a value of %d bytes after a larger one", size), tooLarge, func(tx store.RWTx) {
			tx.Put("1", make([]byte, store.MaxBytes/2))
			tx.Put("1", nil)
			tx.Put("2", make([]byte, size-2))
		})
		attempt(t, s, fmt.Sprintf("deletes and a value, %d bytes", size), tooLarge, func(tx store.RWTx) {
			tx.Delete("123")
			tx.Put("2", make([]byte, size-4))
		})
	}
}

func testLimitKey(t *testing.T, e Engine) {
	s := e.fresh(t)
	for _, n := range []int{0, 1, store.MaxKey - 1, store.MaxKey, store.MaxKey + 1} {
		key := strings.Repeat("k", n)
		tooLarge := n == 0 || n > store.MaxKey
		attempt(t, s, fmt.Sprintf("Put of a key of %d bytes", n), tooLarge, func(tx store.RWTx) { tx.Put(key, nil) })
		attempt(t, s, fmt.Sprintf("Get of a key of %d bytes", n), tooLarge, func(tx store.RWTx) { _, _ = tx.Get(key) })
		attempt(t, s, fmt.Sprintf("Delete of a key of %d bytes", n), tooLarge, func(tx store.RWTx) { tx.Delete(key) })
	}
}
