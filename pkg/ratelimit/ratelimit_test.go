package ratelimit

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestWaitDelaysWithinTheDeadlineAndRefusesBeyond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New[string](2)
		wait := func(n int, longest time.Duration) (time.Duration, error) {
			return l.Wait(t.Context(), "a", n, longest)
		}
		// The bucket is full: two at once, no waiting.
		for range 2 {
			if d, err := wait(1, 0); d != 0 || err != nil {
				t.Fatalf("waited %v: %v", d, err)
			}
		}
		// The third comes in half a second, the fourth in one.
		begin := time.Now()
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() {
				if _, err := wait(1, time.Second); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		// A fifth would take 1.5 s.
		if _, err := wait(1, time.Second); !errors.Is(err, ErrExceeded) || !strings.Contains(err.Error(), "rate: Wait(n=1) would exceed context deadline") {
			t.Errorf("beyond the longest wait: %v", err)
		}
		short, cancel := context.WithTimeout(t.Context(), 1400*time.Millisecond)
		defer cancel()
		if _, err := l.Wait(short, "a", 1, time.Hour); !errors.Is(err, ErrExceeded) {
			t.Errorf("beyond the deadline: %v", err)
		}
		if d, err := l.Wait(t.Context(), "b", 2, 0); d != 0 || err != nil {
			t.Errorf("another key waited %v: %v", d, err)
		}
		all.Wait()
		if took := time.Since(begin); took != time.Second {
			t.Errorf("four of two a second took %v more than the first two, want 1s", took)
		}
	})
}

// S08: the boundaries of what may be asked for at once.
func TestS08_BurstLimit(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{
		499: "", 500: "", 501: "rate (501) exceeds burst size (500)",
	} {
		l := New[string](500)
		_, err := l.Wait(t.Context(), "a", n, 0)
		if want == "" && err != nil || want != "" && (!errors.Is(err, ErrExceeded) || !strings.HasSuffix(err.Error(), want)) {
			t.Errorf("%d at once: %v, want %q", n, err, want)
		}
	}
}

func TestWaitGivesBackWhenTheCallerGoes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New[string](1)
		if !l.Allow(time.Now(), "a", 1) || l.Allow(time.Now(), "a", 1) {
			t.Fatal("a bucket of one does not hold one")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := l.Wait(ctx, "a", 1, time.Minute)
			done <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Wait: %v", err)
		}
		time.Sleep(time.Second)
		if !l.Allow(time.Now(), "a", 1) {
			t.Error("what was waited for in vain was not given back")
		}
	})
}

// Who is refused has taken nothing: asking again and again holds up nobody.
func TestRefusalTakesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New[string](1)
		l.Allow(time.Now(), "a", 1)
		for range 100 {
			if _, err := l.Wait(t.Context(), "a", 1, time.Second/2); !errors.Is(err, ErrExceeded) {
				t.Fatalf("Wait: %v", err)
			}
		}
		if d, err := l.Wait(t.Context(), "a", 1, time.Second); d != time.Second || err != nil {
			t.Errorf("the next waited %v: %v, want 1s", d, err)
		}
	})
}

func TestNoLimit(t *testing.T) {
	t.Parallel()
	for name, l := range map[string]*Limiter[int]{"nil": nil, "zero": {}, "of 0": New[int](0)} {
		if d, err := l.Wait(t.Context(), 1, 1<<30, 0); d != 0 || err != nil {
			t.Errorf("%s: waited %v: %v", name, d, err)
		}
	}
}

// A million sources, twice as many keys as an attacker's /44 has networks: the
// table stays as small as it is documented to be.
func TestMemoryStaysFlat(t *testing.T) {
	l := New[netip.Prefix](1) // Alone: it measures the heap.
	now := time.Now()
	var most, warm uint64
	for i := range 1 << 20 {
		var a [16]byte
		a[0] = 0x20
		binary.BigEndian.PutUint64(a[:], 0x2001_0db8_0000_0000+uint64(i))
		if !l.Allow(now, Source(netip.AddrFrom16(a)), 1) {
			t.Fatal("a new source is refused")
		}
		switch {
		case i == 4*MaxKeys:
			warm = heap()
		case i > 4*MaxKeys && i%MaxKeys == 0:
			most = max(most, heap())
		}
	}
	if n := l.keys(); n > MaxKeys {
		t.Errorf("%d keys are remembered, want at most %d", n, MaxKeys)
	}
	t.Logf("heap %d KiB after %d sources, at most %d KiB up to %d", warm>>10, 4*MaxKeys, most>>10, 1<<20)
	if most > warm+warm/2+4<<20 {
		t.Errorf("the heap grew from %d to %d bytes", warm, most)
	}
	// It was a storm. A minute later, a handful of keys are left.
	for i := range 3 {
		for j := range 1 << 10 {
			var a [4]byte
			binary.BigEndian.PutUint32(a[:], uint32(j))
			l.Allow(now.Add(time.Duration(i+1)*idle), Source(netip.AddrFrom4(a)), 1)
		}
	}
	if n := l.keys(); n > 1<<10 {
		t.Errorf("%d keys are remembered a minute after the storm", n)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A key in use is not forgotten, however many others come.
func TestKeyInUseIsRemembered(t *testing.T) {
	t.Parallel()
	l := New[int](1)
	now := time.Now()
	l.Allow(now, -1, 1)
	for i := range 4 * MaxKeys {
		l.Allow(now, i, 1)
		if i%64 == 0 && l.Allow(now, -1, 1) {
			t.Fatalf("the key in use was forgotten after %d others", i)
		}
	}
}

func TestSource(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		"192.0.2.7":                 "192.0.2.7/32",
		"::ffff:192.0.2.7":          "192.0.2.7/32",
		"2001:db8:1:2:3:4:5:6":      "2001:db8:1:2::/64",
		"fe80::1%eth0":              "fe80::/64",
		"2001:db8:1:2:ffff:ffff::1": "2001:db8:1:2::/64",
	} {
		if got := Source(netip.MustParseAddr(addr)).String(); got != want {
			t.Errorf("Source(%s) = %s, want %s", addr, got, want)
		}
	}
	if got := Source(netip.Addr{}); got.IsValid() {
		t.Errorf("Source of no address is %s", got)
	}
}

func BenchmarkWait(b *testing.B) {
	l := New[netip.Prefix](1 << 30)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		key := Source(netip.MustParseAddr("192.0.2.7"))
		for pb.Next() {
			if _, err := l.Wait(b.Context(), key, 1, time.Second); err != nil {
				b.Fatal(err)
			}
		}
	})
}
