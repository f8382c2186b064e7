package etcd_test

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"testing"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/dump"
	"github.com/credence-id/credence/pkg/store/etcd"
	"github.com/credence-id/credence/pkg/store/etcd/etcdtest"
	"github.com/credence-id/credence/pkg/store/storetest"
)

func TestMain(m *testing.M) {
	// Each of the model's steps is a few calls over a socket: a quarter of
	// rapid's default is half a minute, and the flag or a soak gives more.
	if os.Getenv("SOAK") == "" {
		_ = flag.Set("rapid.checks", "25") // rapid has defined it.
	}
	etcdtest.Main(m)
}

var prefixes atomic.Int64

// fresh is a configuration of a new store in the member that all tests share.
// It does not compact: that would be for all of them.
func fresh(t testing.TB) etcd.Config {
	return etcd.Config{
		Endpoints: []string{etcdtest.Start(t)},
		Prefix:    fmt.Sprintf("/%s/%d/", t.Name(), prefixes.Add(1)),
		History:   -1,
	}
}

// open opens a store that the test's end closes.
func open(t testing.TB, cfg etcd.Config) *etcd.Store {
	t.Helper()
	s, err := etcd.Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, store.ErrClosed) {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func opener(cfg etcd.Config) storetest.Opener {
	return func(t testing.TB) store.Store { return open(t, cfg) }
}

func TestContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, storetest.Engine{
		New: func(t testing.TB) storetest.Opener { return opener(fresh(t)) },
		Restore: func(t testing.TB, backup io.Reader) storetest.Opener {
			cfg := fresh(t)
			s := open(t, cfg)
			if _, err := dump.Read(t.Context(), backup, s, nil); err != nil {
				t.Fatalf("Read: %v", err)
			}
			return opener(cfg)
		},
		Compact: func(t testing.TB, s store.Store) {
			if err := etcd.Compact(t.Context(), s.(*etcd.Store)); err != nil {
				t.Fatal(err)
			}
		},
		Shared: true,
	})
}
