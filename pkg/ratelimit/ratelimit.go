package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// ErrExceeded is wrapped by what [Limiter.Wait] returns for a call that is over
// the limit. The texts are SPIRE's.
var ErrExceeded = errors.New("rate limit exceeded")

const (
	// MaxKeys is how many keys one Limiter remembers at the most.
	MaxKeys = 1 << 16
	// shards spread the keys over as many locks.
	shards = 16
	// perGeneration is how many keys one of the two generations of a shard has.
	perGeneration = MaxKeys / shards / 2
	// idle is how long a generation lasts at the least when it is not full, so
	// that memory taken in a storm is given back after it.
	idle = time.Minute
)

// Limiter lets each key do a number of things a second, and that number at
// once. It may be used by many goroutines. The zero Limiter and nil limit
// nothing.
type Limiter[K comparable] struct {
	perSecond int
	seed      maphash.Seed
	shards    [shards]shard[K]
}

// shard has two generations of buckets. A key in use moves to the young one;
// when that is full, or old, it takes the place of the other.
type shard[K comparable] struct {
	mu         sync.Mutex
	young, old map[K]*rate.Limiter
	begun      time.Time // of the young generation
}

// New returns a Limiter of perSecond things a second for each key; 0: no limit.
func New[K comparable](perSecond int) *Limiter[K] {
	return &Limiter[K]{perSecond: perSecond, seed: maphash.MakeSeed()}
}

// PerSecond is the limit, which is also the size of the bucket; 0: none.
func (l *Limiter[K]) PerSecond() int {
	if l == nil {
		return 0
	}
	return l.perSecond
}

// Allow says whether key may do n things now, and counts them if so.
func (l *Limiter[K]) Allow(now time.Time, key K, n int) bool {
	return l.PerSecond() == 0 || l.bucket(now, key).AllowN(now, n)
}

// Wait returns once key may do n things, and says how long that took. It waits
// as long as it must, as SPIRE's servers do, but neither beyond the deadline of
// ctx nor for more than longest: a call that would have to is refused at once
// with an error that wraps [ErrExceeded]. If ctx ends first, what was waited for
// is given back and the error is that of ctx.
func (l *Limiter[K]) Wait(ctx context.Context, key K, n int, longest time.Duration) (time.Duration, error) {
	if l.PerSecond() == 0 {
		return 0, nil
	}
	if n > l.perSecond {
		return 0, fmt.Errorf("%w: rate (%d) exceeds burst size (%d)", ErrExceeded, n, l.perSecond)
	}
	now := time.Now()
	bucket := l.bucket(now, key)
	if bucket.AllowN(now, n) {
		return 0, nil
	}
	if deadline, ok := ctx.Deadline(); ok {
		longest = min(longest, deadline.Sub(now))
	}
	r := bucket.ReserveN(now, n)
	delay := r.DelayFrom(now)
	if delay > longest {
		r.CancelAt(now)
		return 0, fmt.Errorf("%w: rate: Wait(n=%d) would exceed context deadline", ErrExceeded, n)
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return delay, nil
	case <-ctx.Done():
		r.Cancel()
		return time.Since(now), ctx.Err()
	}
}

// bucket is the key's, made if there is none.
func (l *Limiter[K]) bucket(now time.Time, key K) *rate.Limiter {
	s := &l.shards[maphash.Comparable(l.seed, key)%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.begun) >= idle {
		s.age(now)
	}
	b := s.young[key]
	if b != nil {
		return b
	}
	if b = s.old[key]; b == nil {
		b = rate.NewLimiter(rate.Limit(l.perSecond), l.perSecond)
	} else {
		delete(s.old, key)
	}
	if len(s.young) >= perGeneration {
		s.age(now)
	}
	s.young[key] = b
	return b
}

// age makes the young generation the old one. It is called with mu held.
func (s *shard[K]) age(now time.Time) {
	s.young, s.old, s.begun = make(map[K]*rate.Limiter), s.young, now
}

// keys is how many keys are remembered.
func (l *Limiter[K]) keys() int {
	n := 0
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		n += len(s.young) + len(s.old)
		s.mu.Unlock()
	}
	return n
}

// Source is the key of who sends from an address: the address itself for IPv4,
// its /64 for IPv6, of which one machine may have as many as it likes.
func Source(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // No address: all of them are one source.
	}
	return p
}
