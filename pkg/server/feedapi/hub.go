package feedapi

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/entitle"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/telemetry"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// Config of a Hub. All fields are required but those that say otherwise.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	// Graph says what an agent may have, and Index has the bundles. Both are
	// brought to a commit before it is published.
	Graph *entitle.Graph
	Index *registry.Index
	// Head is the newest revision of the store; it tells an agent that is
	// ahead of this server from one whose cursor is of no history we know.
	Head func(context.Context) (store.Revision, error)
	// SetVersion remembers the version an agent says it has, when it is
	// another one than before.
	SetVersion func(ctx context.Context, agent spiffeid.ID, version string) error
	// OnDraining is called when what Draining says has changed; may be nil.
	OnDraining func()
	// CatchUp bounds the wait for the log when an agent has seen more of it
	// than this server; default 10 s. It is a second at most for an agent that
	// has another server to go to.
	CatchUp time.Duration
	Logger  *slog.Logger
	// Audit may be nil.
	Audit *audit.Log
	// Registerer receives the metrics; may be nil.
	Registerer prometheus.Registerer
}

// Hub is the feed of one server: the follower of the log publishes to it, and
// it serves credence.feed.v1.Feed. Its methods may be called concurrently, but
// for Publish, which has one caller.
type Hub struct {
	feedv1.UnimplementedFeedServer

	cfg     Config
	metrics *metrics
	wire    wireCache

	// ready is closed at the first Publish, after storeID was set.
	ready    chan struct{}
	storeID  string
	revision atomic.Uint64
	// federating has every entry that federates, as of the last commit. It is
	// used by Publish alone.
	federating map[string]*registry.Packed

	// running has the goroutines that read from and write to streams; they
	// end after their handler, which is why Stop waits for them.
	running sync.WaitGroup

	mu sync.Mutex
	// guarded by mu:
	streams map[spiffeid.ID]*stream
	waiters []waiter
	stopped bool
	// calledOff is there while the server is drained, and closed by Undrain.
	calledOff chan struct{}
	// unasked are agents that Drain will ask to go in their turn.
	unasked map[spiffeid.ID]struct{}
	// movable counts the streams whose agents could go to another server;
	// moved is closed, and another one, when it has changed.
	movable int
	moved   chan struct{}

	// stopping is closed by the first Stop, for those that are no stream yet.
	stopping chan struct{}
}

// waiter waits for a revision.
type waiter struct {
	revision store.Revision
	reached  chan struct{}
}

// AgentState is what the hub knows of an agent that has a stream to this
// server.
type AgentState struct {
	ID      spiffeid.ID
	Address string
	Version string
	Since   time.Time
	// Synced says that the agent was sent all it may have.
	Synced bool
	// Sent and Acked are the revisions up to which the agent was sent the
	// feed, and says it has applied it. They stand still while nothing
	// changes for the agent.
	Sent, Acked store.Revision
	// Alternatives is how many other servers the agent could go to, as it says;
	// LastResort that none of them took it when it came here.
	Alternatives uint32
	LastResort   bool
}

// New returns a Hub that serves nothing before the first Publish.
func New(cfg Config) (*Hub, error) {
	cfg.CatchUp = cmp.Or(cfg.CatchUp, defaultCatchUp)
	h := &Hub{
		cfg:        cfg,
		ready:      make(chan struct{}),
		stopping:   make(chan struct{}),
		federating: make(map[string]*registry.Packed),
		streams:    make(map[spiffeid.ID]*stream),
		moved:      make(chan struct{}),
		unasked:    make(map[spiffeid.ID]struct{}),
	}
	h.metrics = newMetrics(h)
	if err := h.metrics.register(cfg.Registerer); err != nil {
		return nil, err
	}
	return h, nil
}

// Agents are the agents that have a stream to this server, by SPIFFE ID.
func (h *Hub) Agents() []AgentState {
	h.mu.Lock()
	streams := make([]*stream, 0, len(h.streams))
	for _, s := range h.streams {
		streams = append(streams, s)
	}
	h.mu.Unlock()

	out := make([]AgentState, len(streams))
	for i, s := range streams {
		out[i] = s.state()
	}
	slices.SortFunc(out, func(a, b AgentState) int { return cmp.Compare(a.ID.String(), b.ID.String()) })
	return out
}

// Streams is how many agents have a stream to this server.
func (h *Hub) Streams() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.streams)
}

// Stop ends every stream with Unavailable, lets none begin, and waits until
// nothing of the hub runs.
func (h *Hub) Stop() {
	h.mu.Lock()
	if !h.stopped {
		close(h.stopping)
	}
	h.stopped = true
	for _, s := range h.streams {
		s.end(errStopping)
	}
	h.mu.Unlock()
	h.running.Wait()
}

// EndAll ends every stream there is with the reason; others may begin. It is for
// a server that cannot vouch for its view any more.
func (h *Hub) EndAll(reason error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.streams {
		s.end(reason)
	}
}

// keyOldPeer is the attribute of where a stream came from that another took
// over.
const keyOldPeer = "old_peer_addr"

var (
	errStopping = rpcerr.New(codes.Unavailable, "the server is stopping: go to another one or try again")
	errLoading  = rpcerr.New(codes.Unavailable, "this server has not read its store yet: go to another one or try again")
	errBehind   = rpcerr.New(codes.Unavailable, "this server is behind what the agent has seen: go to another one or try again")
	errLeft     = rpcerr.New(codes.Canceled, "the agent left")
	errReplaced = rpcerr.New(codes.Aborted, "a newer stream of this agent took over")
)

// attach makes s the agent's stream. An older one ends: whatever holds it
// still, gets nothing more.
func (h *Hub) attach(ctx context.Context, s *stream) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.stopped:
		return errStopping
	case ctx.Err() != nil: // Whoever left already takes nobody's place.
		return context.Cause(ctx)
	}
	if err := h.admit(s); err != nil {
		return err
	}
	h.count(h.streams[s.agent], -1)
	h.count(s, 1)
	if old := h.streams[s.agent]; old != nil {
		old.end(errReplaced)
		h.metrics.replaced.Inc()
		h.cfg.Audit.Record(ctx, audit.Event{
			Action: "feed.replace", Caller: s.agent.String(), CallerKind: "agent", Subject: s.agent.String(),
			Attrs: []slog.Attr{slog.String(keyOldPeer, old.address), slog.String(telemetry.PeerAddr, s.address)},
		}, nil)
	}
	h.streams[s.agent] = s
	return nil
}

// detach forgets s, unless a newer stream took its place.
func (h *Hub) detach(s *stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.streams[s.agent] == s {
		delete(h.streams, s.agent)
		h.count(s, -1)
	}
}

// published is the revision of the last commit that was published.
func (h *Hub) published() store.Revision { return store.Revision(h.revision.Load()) }

// snapshot is what the agent may have. The feed tells the state of the store at
// a revision, in which time plays no part: an entry that has expired is removed
// by the commit that prunes it, and agents let go of it by themselves. An agent
// whose SVID has expired has no stream.
func (h *Hub) snapshot(agent spiffeid.ID) entitle.Snapshot {
	return h.cfg.Graph.Snapshot(agent, time.Time{})
}

// lookup is snapshot for one entry.
func (h *Hub) lookup(agent spiffeid.ID, entryID string) (*registry.Packed, bool) {
	return h.cfg.Graph.Lookup(agent, entryID, time.Time{})
}

// await returns when everything up to the revision was published.
func (h *Hub) await(ctx context.Context, revision store.Revision) error {
	h.mu.Lock()
	if h.published() >= revision {
		h.mu.Unlock()
		return nil
	}
	w := waiter{revision: revision, reached: make(chan struct{})}
	h.waiters = append(h.waiters, w)
	h.mu.Unlock()

	select {
	case <-w.reached:
		return nil
	case <-h.stopping:
		return errStopping
	case <-ctx.Done():
		h.mu.Lock()
		defer h.mu.Unlock()
		h.waiters = slices.DeleteFunc(h.waiters, func(o waiter) bool { return o.reached == w.reached })
		return context.Cause(ctx)
	}
}

const (
	// defaultCatchUp is the default of Config.CatchUp.
	defaultCatchUp = 10 * time.Second
	// hurry is how long an agent waits for a server that loads or is behind when
	// there is another one that may take it.
	hurry = time.Second
)

// mayGo says whether the agent has another server to go to.
func mayGo(open *feedv1.Open) bool { return open.GetAlternatives() > 0 && !open.GetLastResort() }

// loaded returns when the hub has begun to publish. Who has nowhere else to go
// waits for it as long as it takes.
func (h *Hub) loaded(ctx context.Context, open *feedv1.Open) error {
	if mayGo(open) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, hurry, errLoading)
		defer cancel()
	}
	select {
	case <-h.ready:
		return nil
	case <-h.stopping:
		return errStopping
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// catchUp waits until this server has seen as much of the log as the agent, and
// says whether the agent's cursor is of this log. An agent that claims more
// than was ever committed is of a history that was undone by putting back the
// store's file.
func (h *Hub) catchUp(ctx context.Context, agent spiffeid.ID, open *feedv1.Open) (known bool, err error) {
	if open.GetStoreId() != h.storeID {
		return false, nil
	}
	revision := store.Revision(open.GetRevision())
	if revision <= h.published() {
		return true, nil
	}
	head, err := h.cfg.Head(ctx)
	if err != nil {
		return false, fmt.Errorf("reading the head of the store: %w", err)
	}
	if revision > head {
		h.cfg.Logger.WarnContext(ctx, "agent has seen a revision that the store does not have: was the store's file put back?",
			telemetry.AgentID, agent, telemetry.Cursor, revision, telemetry.Revision, head)
		return false, nil
	}
	patience := h.cfg.CatchUp
	if mayGo(open) {
		patience = min(patience, hurry)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errBehind)
	defer cancel()
	return true, h.await(ctx, revision)
}
