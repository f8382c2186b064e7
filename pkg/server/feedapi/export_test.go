package feedapi

import (
	"context"
	"time"

	"github.com/credence-id/credence/pkg/entitle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	feedv1 "github.com/credence-id/credence/proto/feed/v1"
)

// MaxPending is how many entries a stream names before it turns to buckets.
const MaxPending = maxPending

// Session is a stream without gRPC, for tests that decide what happens when.
type Session struct{ s *sender }

// NewSession attaches an agent's stream whose messages go to send.
func (h *Hub) NewSession(ctx context.Context, agent spiffeid.ID, send func(*feedv1.WatchResponse) error) (*Session, error) {
	st := newStream(agent, "", &feedv1.Open{}, time.Now())
	return &Session{&sender{hub: h, st: st, send: send}}, h.attach(ctx, st)
}

// Open answers Open.
func (s *Session) Open(ctx context.Context, open *feedv1.Open) error {
	return s.s.first(ctx, open, open.GetStoreId() == s.s.hub.storeID)
}

// Drain sends until nothing is pending.
func (s *Session) Drain(ctx context.Context) error { return s.s.drain(ctx) }

// Snapshot and Settle are the two halves of a resync, with what was pending
// before the first.
func (s *Session) Snapshot(ctx context.Context) (entitle.Snapshot, func() error, error) {
	p := s.s.st.take()
	snap, err := s.s.snapshot(ctx)
	return snap, func() error { return s.s.settle(snap, p) }, err
}

// Pending is how many entries and bundles are marked by name.
func (s *Session) Pending() (entries, bundles int) {
	s.s.st.mu.Lock()
	defer s.s.st.mu.Unlock()
	return len(s.s.st.pending.entries), len(s.s.st.pending.bundles)
}
