package bolt

// Compact forgets the kept history.
func Compact(s *Store) {
	s.ring.mu.Lock()
	defer s.ring.mu.Unlock()
	s.ring.base, s.ring.kept, s.ring.bytes = s.ring.headLocked(), nil, 0
	s.ring.wakeLocked()
}
