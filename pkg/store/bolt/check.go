package bolt

import "context"

// Check implements store.Store: the file is the one that was opened, and, if
// the disk refused the last commit, it takes an empty one now.
func (s *Store) Check(ctx context.Context) error {
	if _, err := s.Head(ctx); err != nil {
		return err
	}
	if err := s.inPlace(); err != nil || !s.failing.Load() {
		return err
	}
	return s.probe(ctx)
}

// probe commits a group without batches, or with those of who is in it.
func (s *Store) probe(ctx context.Context) error {
	if err := s.turns.take(ctx); err != nil {
		return err
	}
	if s.group == nil {
		g, err := s.beginGroup()
		if err != nil {
			s.turns.release()
			return err
		}
		s.group = g
	}
	g := s.group
	g.probe = true
	s.yieldTurn()
	<-g.done
	return g.err
}
