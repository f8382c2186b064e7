package etcd_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/etcd"
	"github.com/credence-id/credence/pkg/store/etcd/etcdtest"
)

// TestConfig names the field of each mistake.
func TestConfig(t *testing.T) {
	t.Parallel()
	good := etcd.Config{Endpoints: []string{"https://a:2379", "https://b:2379"}}
	if err := good.Validate(); err != nil {
		t.Errorf("Validate: %v", err)
	}
	for name, c := range map[string]struct {
		change func(*etcd.Config)
		want   string
	}{
		"no endpoint":      {func(c *etcd.Config) { c.Endpoints = nil }, "endpoints is empty"},
		"no scheme":        {func(c *etcd.Config) { c.Endpoints = []string{"a:2379"} }, "endpoints has"},
		"no port":          {func(c *etcd.Config) { c.Endpoints = []string{"http://a"} }, "endpoints has"},
		"a path":           {func(c *etcd.Config) { c.Endpoints = []string{"http://a:1/x"} }, "endpoints has"},
		"a user":           {func(c *etcd.Config) { c.Endpoints = []string{"http://me:hunter2@a:1"} }, "endpoints has a URL with a user"},
		"a user alone":     {func(c *etcd.Config) { c.Endpoints = []string{"me:hunter2@a:1"} }, "endpoints has a URL with a user"},
		"another scheme":   {func(c *etcd.Config) { c.Endpoints = []string{"grpc://me:hunter2@a:1"} }, "endpoints has a URL with a user"},
		"two ways":         {func(c *etcd.Config) { c.Endpoints = append(c.Endpoints, "http://c:1") }, "endpoints has https and http"},
		"TLS without":      {func(c *etcd.Config) { c.Endpoints, c.CAFile = []string{"http://a:1"}, "x" }, "endpoints are http"},
		"prefix":           {func(c *etcd.Config) { c.Prefix = "/x" }, "prefix is"},
		"long prefix":      {func(c *etcd.Config) { c.Prefix = strings.Repeat("x", 256) + "/" }, "prefix is"},
		"half certificate": {func(c *etcd.Config) { c.KeyFile = "x" }, "cert_file and key_file"},
		"half user":        {func(c *etcd.Config) { c.Username = "x" }, "username needs"},
		"short request":    {func(c *etcd.Config) { c.RequestTimeout = time.Millisecond }, "request_timeout is"},
		"short dial":       {func(c *etcd.Config) { c.DialTimeout = -1 }, "dial_timeout is"},
		"short lock":       {func(c *etcd.Config) { c.LockTTL = time.Second }, "lock_ttl is"},
		"short history":    {func(c *etcd.Config) { c.History = time.Minute }, "history is"},
		"small ring":       {func(c *etcd.Config) { c.RingBytes = 1 }, "ring_bytes is"},
	} {
		cfg := good
		c.change(&cfg)
		err := cfg.Validate()
		field, ok := errors.AsType[*etcd.FieldError](err)
		if !ok || !strings.HasPrefix(c.want, field.Field) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v, want it to say %q", name, err, c.want)
		}
		if _, err := etcd.Open(t.Context(), cfg); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

// TestOpenRefuses opens what is not a store of this program.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	cli := etcdtest.NewClient(t, etcdtest.Start(t))
	defer cli.Close()
	for name, c := range map[string]struct {
		keys map[string]string
		want string
		is   error
	}{
		"keys of another":  {map[string]string{"x": "y"}, "are not a store of this program", nil},
		"no head":          {map[string]string{"store": `{"format":1,"id":"0123456789abcdef0123456789abcdef"}`}, "are not a store", nil},
		"garbage":          {map[string]string{"store": "garbage", "head": ""}, "not the record", nil},
		"newer":            {map[string]string{"store": `{"format":2,"id":"0123456789abcdef0123456789abcdef"}`, "head": ""}, "format 2, this program knows up to 1", store.ErrFormat},
		"record with more": {map[string]string{"store": `{"format":1,"id":"0123456789abcdef0123456789abcdef","x":1}`, "head": ""}, "", nil},
	} {
		cfg := fresh(t)
		for k, v := range c.keys {
			if _, err := cli.Put(t.Context(), cfg.Prefix+k, v); err != nil {
				t.Fatal(err)
			}
		}
		s, err := etcd.Open(t.Context(), cfg)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			} else if err := s.Close(); err != nil {
				t.Error(err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), cfg.Prefix) || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: %v, want it to say %q and the prefix", name, err, c.want)
		}
	}
}

// TestOpenExisting looks for a store that may not be there, and leaves none.
func TestOpenExisting(t *testing.T) {
	t.Parallel()
	cfg := fresh(t)
	existing := cfg
	existing.Existing = true
	for range 2 {
		if _, err := etcd.Open(t.Context(), existing); !errors.Is(err, etcd.ErrNone) || !strings.Contains(err.Error(), cfg.Prefix) {
			t.Fatalf("where there is none: %v", err)
		}
	}
	made := open(t, cfg)
	if found := open(t, existing); found.Info().ID != made.Info().ID {
		t.Errorf("found %v, made %v", found.Info(), made.Info())
	}
}

// TestOpenRace makes one store from many sides at once.
func TestOpenRace(t *testing.T) {
	t.Parallel()
	cfg := fresh(t)
	ids := make([]string, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			s, err := etcd.Open(t.Context(), cfg)
			if err != nil {
				t.Errorf("Open: %v", err)
				return
			}
			ids[i] = s.Info().ID
			if err := s.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("the store was made more than once: %v", ids)
		}
	}
}

// TestNeighboursInEtcd: what others write in the same etcd, also below a prefix
// that begins alike, is no matter of this store.
func TestNeighboursInEtcd(t *testing.T) {
	t.Parallel()
	cfg := fresh(t)
	s := open(t, cfg)
	other := cfg
	other.Prefix += "k/k/"
	cli := etcdtest.NewClient(t, cfg.Endpoints...)
	defer cli.Close()
	at := put(t, s, "a", "1")
	for _, key := range []string{cfg.Prefix + "i", cfg.Prefix + "kk", cfg.Prefix + "zzz", cfg.Prefix + "l", "/" + cfg.Prefix} {
		if _, err := cli.Put(t.Context(), key, "foreign"); err != nil {
			t.Fatal(err)
		}
	}
	if head, err := s.Head(t.Context()); err != nil || head != at {
		t.Errorf("Head = %d, %v after foreign writes, was %d", head, err, at)
	}
	next := put(t, s, "b", "2")
	for b, err := range s.Watch(t.Context(), "", at) {
		if err != nil || b.Revision != next || len(b.Events) != 1 {
			t.Errorf("next batch %+v, %v", b, err)
		}
		break
	}
	if err := s.View(t.Context(), func(tx store.Tx) error {
		for kv, err := range tx.Scan("", "") {
			if err != nil || kv.Key != "a" && kv.Key != "b" {
				t.Errorf("scanned %q, %v", kv.Key, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestReplaced removes the store under a process, and puts another one there:
// nothing is written into it, and nothing read.
func TestReplaced(t *testing.T) {
	t.Parallel()
	cfg := fresh(t)
	s := open(t, cfg)
	put(t, s, "k", "v")
	cli := etcdtest.NewClient(t, cfg.Endpoints...)
	defer cli.Close()
	try := func(what string) {
		t.Helper()
		_, err := s.Head(t.Context())
		wantUnavailable(t, "Head, "+what, err, "restart")
		_, err = s.Update(t.Context(), func(tx store.RWTx) error { tx.Put("k", nil); return nil })
		wantUnavailable(t, "Update, "+what, err, "nothing was written")
		wantUnavailable(t, "View, "+what, s.View(t.Context(), func(store.Tx) error { return nil }), "restart")
	}
	// Also under an Update that has begun.
	_, err := s.Update(t.Context(), func(tx store.RWTx) error {
		if _, err := cli.Delete(t.Context(), cfg.Prefix, clientv3.WithPrefix()); err != nil {
			return err
		}
		tx.Put("k", []byte("late"))
		return nil
	})
	wantUnavailable(t, "Update under which it was removed", err, "nothing was written")
	try("removed")
	anew := open(t, cfg)
	if anew.Info().ID == s.Info().ID {
		t.Error("a store that was made anew has the ID of the one before")
	}
	try("replaced")
	if head, err := anew.Head(t.Context()); err != nil || head != 0 {
		t.Errorf("the new one is at %d, %v", head, err)
	}
}

// TestFence holds a lock that runs out unnoticed: the commit of its holder is
// refused, and a lock that cannot be kept says that it is lost.
func TestFence(t *testing.T) {
	t.Parallel()
	link := etcdtest.NewLink(t, etcdtest.Start(t))
	cfg := fresh(t)
	cfg.RequestTimeout, cfg.LockTTL = time.Second, 2*time.Second
	there := open(t, cfg)
	cfg.Endpoints = link.Endpoints()
	s := open(t, cfg)
	l, err := s.Lock(t.Context(), "work")
	if err != nil {
		t.Fatal(err)
	}
	write := func(l store.Lock) error {
		_, err := l.Update(t.Context(), func(tx store.RWTx) error { tx.Put("k", []byte("held")); return nil })
		return err
	}
	// 1. Somebody takes the key away while an Update is under way.
	cli := etcdtest.NewClient(t, etcdtest.Start(t))
	defer cli.Close()
	_, err = l.Update(t.Context(), func(tx store.RWTx) error {
		if _, err := cli.Delete(t.Context(), cfg.Prefix+"lock/work"); err != nil {
			return err
		}
		tx.Put("k", []byte("late"))
		return nil
	})
	if !errors.Is(err, store.ErrLockLost) {
		t.Errorf("Update under a lock that was taken away: %v", err)
	}
	<-l.Lost()
	l.Unlock()
	// 2. Its holder is cut off: it knows when the lease may be over, and another
	// gets the lock then, not before.
	if l, err = s.Lock(t.Context(), "work"); err != nil {
		t.Fatal(err)
	}
	if err := write(l); err != nil {
		t.Fatal(err)
	}
	link.Cut()
	begin := time.Now()
	second, err := there.Lock(t.Context(), "work")
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-l.Lost():
	default:
		t.Error("another holds the lock, and the first one does not know")
	}
	if took := time.Since(begin); took < time.Second {
		t.Errorf("the lock moved after %v", took)
	}
	link.Heal()
	if err := write(l); !errors.Is(err, store.ErrLockLost) {
		t.Errorf("Update of the first holder: %v", err)
	}
	if err := write(second); err != nil {
		t.Errorf("Update of the second holder: %v", err)
	}
	l.Unlock()
	second.Unlock()
}

// TestLimitsUnderLock makes the largest Updates there may be, with the longest
// prefix and under a lock, whose fence takes what MaxOps leaves of etcd's limit.
func TestLimitsUnderLock(t *testing.T) {
	t.Parallel()
	cfg := fresh(t)
	cfg.Prefix += strings.Repeat("p", 255-len(cfg.Prefix)) + "/"
	s := open(t, cfg)
	l, err := s.Lock(t.Context(), "work")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Unlock()
	long := func(kind string, i int) string {
		key := fmt.Sprintf("%s%03d/", kind, i) // A table of its own.
		return key + strings.Repeat("k", store.MaxKey-len(key))
	}
	for name, fn := range map[string]func(tx store.RWTx){
		"reads": func(tx store.RWTx) {
			for i := range store.MaxOps - 1 {
				_, _ = tx.Get(long("none", i))
			}
			tx.Put("k", nil)
		},
		"reads and large writes": func(tx store.RWTx) {
			for i := range store.MaxOps / 2 {
				_, _ = tx.Get(long("large", i))
				tx.Put(long("large", i), make([]byte, store.MaxBytes/(store.MaxOps/2)-store.MaxKey))
			}
		},
		"scans": func(tx store.RWTx) {
			for i := range store.MaxOps/2 - 1 {
				for kv, err := range tx.Scan(long("s", i), "") {
					t.Errorf("scanned %q, %v", kv.Key, err)
				}
			}
			tx.Put("k", nil)
		},
	} {
		if _, err := l.Update(t.Context(), func(tx store.RWTx) error { fn(tx); return nil }); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Each delete marks a table.
	if _, err := l.Update(t.Context(), func(tx store.RWTx) error {
		for i := range store.MaxOps / 2 {
			tx.Delete(long("large", i))
		}
		return nil
	}); err != nil {
		t.Errorf("deletes: %v", err)
	}
}
