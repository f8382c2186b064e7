package connlimit

import "sync"

// Share divides a number of things among keys that come one by one and keep
// what they get. A key may have at most as many as are left for others: the
// first gets half, whatever it wants, the next half of the rest, and so on, so
// that there is something left for each. The zero Share has nothing to give;
// use [NewShare].
type Share[K comparable] struct {
	total int

	mu    sync.Mutex
	used  int
	byKey map[K]int
}

// NewShare returns a Share of total things.
func NewShare[K comparable](total int) *Share[K] {
	return &Share[K]{total: total, byKey: make(map[K]int)}
}

// Take takes one for key, or says that it has as many as it may. A nil Share
// gives always.
func (s *Share[K]) Take(key K) bool {
	if s == nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byKey[key] >= s.total-s.used {
		return false
	}
	s.used++
	s.byKey[key]++
	return true
}

// Give gives one back that key has taken.
func (s *Share[K]) Give(key K) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used--
	if s.byKey[key]--; s.byKey[key] == 0 {
		delete(s.byKey, key)
	}
}

// Total is what there is to share, and Used what is taken of it.
func (s *Share[K]) Total() int { return s.total }

// Used is how many are taken.
func (s *Share[K]) Used() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}
