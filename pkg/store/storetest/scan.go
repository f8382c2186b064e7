package storetest

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/pkg/store"
)

func testScan(t *testing.T, e Engine) {
	s := e.fresh(t)
	keys := []string{"\x00", "a", "a\x00", "a/", "a/1", "a/2", "a/2/x", "a0", "b", "b\xff", "b\xff\xff", "c", "\xff", "\xff\xff"}
	update(t, s, func(tx store.RWTx) {
		for _, k := range keys {
			tx.Put(k, nil)
		}
	})
	for _, c := range []struct {
		prefix, after string
		want          []string
	}{
		{"", "", keys},
		{"a", "", []string{"a", "a\x00", "a/", "a/1", "a/2", "a/2/x", "a0"}},
		{"a/", "", []string{"a/", "a/1", "a/2", "a/2/x"}},
		{"a/", "a/", []string{"a/1", "a/2", "a/2/x"}},
		{"a/", "a/1", []string{"a/2", "a/2/x"}},
		{"a/", "a/11", []string{"a/2", "a/2/x"}},
		{"a/", "a/2/x", nil},
		{"a/", "a", []string{"a/", "a/1", "a/2", "a/2/x"}}, // Before the prefix: all of it.
		{"a/", "\x00", []string{"a/", "a/1", "a/2", "a/2/x"}},
		{"a/", "b", nil}, // Beyond the prefix: none.
		{"b", "", []string{"b", "b\xff", "b\xff\xff"}},
		{"b\xff", "b\xff", []string{"b\xff\xff"}},
		{"\xff", "", []string{"\xff", "\xff\xff"}},
		{"\xff\xff", "\xff\xff", nil},
		{"", "c", []string{"\xff", "\xff\xff"}},
		{"", "\xff\xff", nil},
		{"nothing", "", nil},
	} {
		check := func(in string, tx store.Tx) {
			var got []string
			for kv, err := range tx.Scan(c.prefix, c.after) {
				if err != nil {
					t.Errorf("Scan(%q, %q) in %s: %v", c.prefix, c.after, in, err)
				}
				got = append(got, kv.Key)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("Scan(%q, %q) in %s (-want +got):\n%s", c.prefix, c.after, in, diff)
			}
		}
		if err := s.View(t.Context(), func(tx store.Tx) error { check("View", tx); return nil }); err != nil {
			t.Fatalf("View: %v", err)
		}
		update(t, s, func(tx store.RWTx) { check("Update", tx) })
	}
	// A consumer may stop, and may scan inside a scan.
	err := s.View(t.Context(), func(tx store.Tx) error {
		n := 0
		for _, err := range tx.Scan("a", "") {
			if err != nil {
				return err
			}
			for _, err := range tx.Scan("b", "") {
				if err != nil {
					return err
				}
				n++
				break
			}
			if n == 3 {
				break
			}
		}
		if n != 3 {
			t.Errorf("nested scans went round %d times, want 3", n)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("View: %v", err)
	}
}

func testScanSeesWrites(t *testing.T, e Engine) {
	s := e.fresh(t)
	put(t, s, "k/1", "old", "k/3", "old", "k/5", "old", "l", "old")
	update(t, s, func(tx store.RWTx) {
		tx.Put("k/0", []byte("new"))
		tx.Put("k/2", []byte("new"))
		tx.Put("k/3", []byte("new"))
		tx.Put("k/6", []byte("new"))
		tx.Put("j", []byte("new"))
		tx.Put("m", []byte("new"))
		tx.Delete("k/1")
		tx.Delete("k/4")
		for _, c := range []struct {
			prefix, after string
			want          []string
		}{
			{"k/", "", []string{"k/0=new", "k/2=new", "k/3=new", "k/5=old", "k/6=new"}},
			{"k/", "k/0", []string{"k/2=new", "k/3=new", "k/5=old", "k/6=new"}},
			{"k/", "k/3", []string{"k/5=old", "k/6=new"}},
			{"k/", "k/5", []string{"k/6=new"}},
			{"k/", "k/6", []string{}},
			{"", "k/6", []string{"l=old", "m=new"}},
			{"", "", []string{"j=new", "k/0=new", "k/2=new", "k/3=new", "k/5=old", "k/6=new", "l=old", "m=new"}},
		} {
			got, err := scanned(tx, c.prefix, c.after)
			if err != nil {
				t.Fatalf("Scan: %v", err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("Scan(%q, %q) (-want +got):\n%s", c.prefix, c.after, diff)
			}
		}
	})
}

func testScanWhileWriting(t *testing.T, e Engine) {
	s := e.fresh(t)
	put(t, s, "k/1", "old", "k/3", "old", "k/5", "old", "k/7", "old")
	update(t, s, func(tx store.RWTx) {
		var got []string
		for kv, err := range tx.Scan("k/", "") {
			if err != nil {
				t.Errorf("Scan: %v", err)
			}
			got = append(got, kv.Key+"="+string(kv.Value))
			switch kv.Key {
			case "k/1":
				tx.Delete("k/1") // Behind: no matter.
				tx.Put("k/0", []byte("new"))
				tx.Put("k/2", []byte("new")) // Ahead: seen.
				tx.Put("k/3", []byte("new"))
				tx.Delete("k/5")
			case "k/2":
				tx.Delete("k/2")
			case "k/7":
				tx.Put("k/8", []byte("new")) // After the last one.
			case "k/8":
				tx.Put("l", []byte("new"))
			}
		}
		want := []string{"k/1=old", "k/2=new", "k/3=new", "k/7=old", "k/8=new"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Scan (-want +got):\n%s", diff)
		}
	})
	wantContent(t, s, "", map[string]string{"k/0": "new", "k/3": "new", "k/7": "old", "k/8": "new", "l": "new"})
}
