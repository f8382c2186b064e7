package feedapi

import (
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/store"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// stream is one agent's Watch, as the publisher and the sender see it.
type stream struct {
	agent   spiffeid.ID
	since   time.Time
	address string
	version string
	// alternatives and lastResort are Open's.
	alternatives uint32
	lastResort   bool
	// stuck: it came while the server was drained, because no other one took
	// it. Guarded by the hub's mu.
	stuck bool
	// wake has a token when something was marked.
	wake chan struct{}
	// ended is closed when end was called.
	ended chan struct{}

	mu sync.Mutex
	// guarded by mu:
	err     error
	pending pending
	// needs are the trust domains whose bundles the agent is to have, and the
	// revision of the bundle it was sent last; zero when there was none yet.
	needs  map[spiffeid.TrustDomain]store.Revision
	sent   store.Revision
	acked  store.Revision
	synced bool
}

func newStream(agent spiffeid.ID, address string, open *feedv1.Open, now time.Time) *stream {
	return &stream{
		agent:        agent,
		since:        now,
		address:      address,
		version:      open.GetAgentVersion(),
		alternatives: open.GetAlternatives(),
		lastResort:   open.GetLastResort(),
		wake:         make(chan struct{}, 1),
		ended:        make(chan struct{}),
		needs:        make(map[spiffeid.TrustDomain]store.Revision),
	}
}

// mark changes what is pending and wakes the stream if there is something.
func (s *stream) mark(change func(*pending)) {
	s.mu.Lock()
	change(&s.pending)
	idle := s.pending.empty()
	s.mu.Unlock()
	if idle {
		return
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// take hands over what is pending.
func (s *stream) take() pending {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pending
	s.pending = pending{}
	return p
}

// end says why the stream is over. The first reason counts.
func (s *stream) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
		close(s.ended)
	}
}

// reason is what end was told.
func (s *stream) reason() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// need makes the agent one that needs the trust domain's bundle, and returns
// the revision of the bundle it has.
func (s *stream) need(td spiffeid.TrustDomain) store.Revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, ok := s.needs[td]
	if !ok {
		s.needs[td] = 0
	}
	return have
}

// unknown is a revision that no bundle has.
const unknown = ^store.Revision(0)

// holds records what the agent says it holds, before the first send. A revision
// of another log means nothing, so whatever there is now, is sent.
func (s *stream) holds(td spiffeid.TrustDomain, revision store.Revision, known bool) {
	if !known {
		revision = unknown
	}
	s.has(td, revision)
}

// needing says whether the agent needs the trust domain's bundle.
func (s *stream) needing(td spiffeid.TrustDomain) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.needs[td]
	return ok
}

// has records the bundle the agent was sent; zero when it was taken away.
func (s *stream) has(td spiffeid.TrustDomain, rev store.Revision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.needs[td] = rev
}

// unneeded drops and returns the trust domains that are not in keep.
func (s *stream) unneeded(keep map[spiffeid.TrustDomain]struct{}) []spiffeid.TrustDomain {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []spiffeid.TrustDomain
	for td := range s.needs {
		if _, ok := keep[td]; !ok {
			delete(s.needs, td)
			out = append(out, td)
		}
	}
	return out
}

// progress records that the agent was sent all of a revision.
func (s *stream) progress(rev store.Revision, synced bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = max(s.sent, rev)
	s.synced = s.synced || synced
}

// ack records how far the agent says it is, which cannot be further than what
// it was sent.
func (s *stream) ack(rev store.Revision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acked = max(s.acked, min(rev, s.sent))
}

// state is a line of Hub.Agents.
func (s *stream) state() AgentState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return AgentState{
		ID: s.agent, Address: s.address, Version: s.version, Since: s.since,
		Sent: s.sent, Acked: s.acked, Synced: s.synced, Alternatives: s.alternatives, LastResort: s.lastResort,
	}
}
