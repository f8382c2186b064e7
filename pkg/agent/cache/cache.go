package cache

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"golang.org/x/sync/errgroup"
)

// Sentinel errors, tested with errors.Is. Both are for the workload's eyes.
var (
	// ErrNoIdentity is returned when no entry matches the selectors.
	ErrNoIdentity = errors.New("no identity issued")
	// ErrUnavailable is wrapped, with the reason, when an entry matches (or
	// could, as the agent is not in sync yet) and there is no SVID for it now.
	// The cache goes on trying.
	ErrUnavailable = errors.New("identity is not available now")
)

// Minter gets SVIDs signed by the server. Its methods may be called
// concurrently; an error of the call itself means that the server could not be
// asked.
type Minter interface {
	// MintX509 returns one result per request, in the same order.
	MintX509(ctx context.Context, reqs []X509Request) ([]X509Result, error)
	// MintJWT returns a JWT-SVID in JWS compact serialization.
	MintJWT(ctx context.Context, entryID string, audience []string) (token string, issuedAt, expiresAt time.Time, err error)
}

// X509Request asks for the X509-SVID of an entry. CSR is PKCS#10 DER; only its
// public key counts.
type X509Request struct {
	EntryID string
	CSR     []byte
}

// X509Result is an X509-SVID, DER, leaf first, or the reason there is none.
type X509Result struct {
	Chain     [][]byte
	ExpiresAt time.Time
	Err       error
}

// Config of a Cache. TrustDomain and Minter are required.
type Config struct {
	// TrustDomain of all entries and of the own bundle.
	TrustDomain spiffeid.TrustDomain
	Minter      Minter
	// MaxX509SVIDs is how many X509-SVIDs are kept warm; those that workloads
	// are subscribed to are kept beyond it. Default 1000.
	MaxX509SVIDs int
	// MaxJWTSVIDs is how many JWT-SVIDs are kept for another call. Default 1000.
	MaxJWTSVIDs int
	// AvailabilityTarget is the outage that X509-SVIDs are to outlast where they
	// live long enough, see svid.RotateFor; 0: half of their life.
	AvailabilityTarget time.Duration
	// KeyType of the workloads' keys; default keys.ECP256.
	KeyType keys.Type
	// Log defaults to nowhere.
	Log *slog.Logger
	// Metrics is where the cache registers its metrics; nil: nowhere.
	Metrics prometheus.Registerer
}

const (
	defaultMaxSVIDs = 1000
	// maxWait bounds how long a workload waits for the first sync or for an
	// SVID to be minted.
	maxWait = 10 * time.Second
	// restoredWait is how long SVIDs of an earlier run are held back, so that
	// a server that is there can first say what has changed.
	restoredWait = time.Second
)

// Cache holds entries, bundles and SVIDs. All methods may be called
// concurrently, but for Open, Apply and Synced, which have one caller at a time.
type Cache struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	phase   atomic.Pointer[phase]
	changes [2]chan struct{} // capacity 1; without and with keys, see Changes
	rearm   chan struct{}    // capacity 1: the earliest due time has moved

	mu sync.Mutex
	// guarded by mu:

	records map[string]*record // by entry ID
	bundles map[string]*Bundle // by trust domain name
	index   index              // records that can be served, by selectors
	cursor  cursor

	views      map[string]*view // by selectors, see selectorsKey
	idleViews  *list.List       // of *view, without subscribers, newest first
	viewsBy    map[attest.Selector]map[*view]struct{}
	grantees   map[string]*grantee // by entry IDs, see granteeKey
	dirtyViews map[*view]struct{}
	dirtySets  map[*grantee]struct{}

	kept      int                  // records with an SVID or on the way to one
	cold      map[*record]struct{} // records that could be warm, were there room
	unused    *list.List           // of *record: kept without demand, newest first
	work      *sync.Cond           // on mu: the queues have grown
	urgent    []*record
	patient   []*record
	due       dueHeap
	jwts      *list.List // of *jwtSVID, last used first
	jwtFlight map[jwtKey]*jwtFlight

	jwtSlots chan struct{} // bounds the calls for JWT-SVIDs
}

// phase is how far the agent is with its server.
type phase struct {
	// synced says that what is held was complete at some time of this run, or
	// was wiped for good.
	synced bool
	// away is why the server cannot be reached, when it cannot.
	away    error
	changed chan struct{} // closed when there is another phase
}

// New returns an empty cache; it starts nothing.
func New(cfg Config) (*Cache, error) {
	if cfg.TrustDomain.IsZero() || cfg.Minter == nil {
		return nil, errors.New("cache: TrustDomain and Minter are required")
	}
	cfg.MaxX509SVIDs = cmp.Or(cfg.MaxX509SVIDs, defaultMaxSVIDs)
	cfg.MaxJWTSVIDs = cmp.Or(cfg.MaxJWTSVIDs, defaultMaxSVIDs)
	cfg.KeyType = cmp.Or(cfg.KeyType, keys.ECP256)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Cache{
		cfg: cfg, log: cfg.Log,
		changes: [2]chan struct{}{make(chan struct{}, 1), make(chan struct{}, 1)}, rearm: make(chan struct{}, 1),
		records: map[string]*record{}, bundles: map[string]*Bundle{}, index: newIndex(),
		views: map[string]*view{}, idleViews: list.New(), viewsBy: map[attest.Selector]map[*view]struct{}{},
		grantees: map[string]*grantee{}, dirtyViews: map[*view]struct{}{}, dirtySets: map[*grantee]struct{}{},
		cold: map[*record]struct{}{}, unused: list.New(), jwts: list.New(), jwtFlight: map[jwtKey]*jwtFlight{},
		jwtSlots: make(chan struct{}, maxJWTCalls),
	}
	c.work = sync.NewCond(&c.mu)
	c.phase.Store(&phase{changed: make(chan struct{})})
	c.metrics = newMetrics(c)
	if err := c.metrics.register(cfg.Metrics); err != nil {
		return nil, fmt.Errorf("registering the cache's metrics: %w", err)
	}
	return c, nil
}

// Run mints, rotates and expires until ctx ends; it returns nil then. Without
// it nothing is minted.
func (c *Cache) Run(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error { return c.keepTime(ctx) })
	for i := range mintWorkers {
		g.Go(func() error { return c.mintLoop(ctx, i == 0) })
	}
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.work.Broadcast()
	})
	defer stop()
	return g.Wait()
}

// Changes has a value after what [Cache.Snapshot] returns has changed since it
// was last read: the time to keep another one.
func (c *Cache) Changes(withKeys bool) <-chan struct{} {
	if withKeys {
		return c.changes[1]
	}
	return c.changes[0]
}

// changed makes Changes have a value.
func (c *Cache) changed(keysOnly bool) {
	for i, ch := range c.changes {
		if keysOnly && i == 0 {
			continue
		}
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// Ready says whether the cache has been in sync with the server in this run;
// the channel is closed when that may have changed.
func (c *Cache) Ready() (ready bool, changed <-chan struct{}) {
	p := c.phase.Load()
	return p.synced, p.changed
}

// Away tells the cache that the server cannot be reached, and why. The reason
// is shown to workloads that cannot be served. Synced takes it back.
func (c *Cache) Away(reason error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setPhase(c.phase.Load().synced, reason)
}

// Bundle is the bundle of a trust domain as the server sent it, or nil. It must
// not be changed.
func (c *Cache) Bundle(td spiffeid.TrustDomain) *types.Bundle {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.bundles[td.Name()]; b != nil {
		return b.version.GetBundle()
	}
	return nil
}

// Held is how many X509-SVIDs and JWT-SVIDs there are.
func (c *Cache) Held() (x509SVIDs, jwtSVIDs int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.records {
		if r.svid != nil {
			x509SVIDs++
		}
	}
	return x509SVIDs, c.jwts.Len()
}

// Wipe forgets everything: streams end, keys and SVIDs are gone, and workloads
// are told that they have no identity. It is for an agent that was banned or
// evicted. What the server sends afterwards is taken up as by an empty cache.
func (c *Cache) Wipe() {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.records)
	for _, r := range c.records {
		c.forget(r)
	}
	clear(c.bundles)
	c.cursor = cursor{}
	c.urgent, c.patient = nil, nil
	c.setPhase(true, nil)
	for _, s := range c.grantees {
		c.dirtySets[s] = struct{}{}
	}
	c.settled(time.Now())
	c.changed(false)
	c.log.Warn("forgot all entries, keys and SVIDs", telemetry.Count, n)
}

// setPhase is called with mu held.
func (c *Cache) setPhase(synced bool, away error) {
	old := c.phase.Swap(&phase{synced: synced, away: away, changed: make(chan struct{})})
	close(old.changed)
	c.work.Broadcast()
}

// earlier is the first of two times; a zero a is no time at all.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}
