package feed

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// PollInterval is how often a server without the stream is asked unless Config
// says otherwise, as SPIRE's own agents do, ± 10 %.
const PollInterval = 5 * time.Second

// maxSyncEntries bounds the entry IDs of one request for full entries.
const maxSyncEntries = 500

// Poll does what [Follow] does with SPIRE's entry.v1 and bundle.v1, for servers
// that do not know the stream. It never returns nil.
func Poll(ctx context.Context, c Config) error {
	p := &poller{
		cache:   c.Cache,
		entries: entryv1.NewEntryClient(c.Conn),
		bundles: bundlev1.NewBundleClient(c.Conn),
		known:   map[string]*types.Entry{},
		held:    map[string]*types.Bundle{},
	}
	for {
		if err := p.round(ctx); err != nil {
			return fmt.Errorf("polling the server: %w", err)
		}
		if c.OnSynced != nil {
			c.OnSynced()
		}
		// A foreign server that offers no stream can only be polled.
		every := cmp.Or(c.PollInterval, PollInterval)
		jitter := time.Duration(rand.Int64N(int64(every/5) + 1)) //nolint:gosec // only spreads the polls
		select {
		case <-time.After(every*9/10 + jitter):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// poller remembers what the server said last. The revisions it gives to the
// cache are its own: SPIRE's API has no store revision.
type poller struct {
	cache   Cache
	entries entryv1.EntryClient
	bundles bundlev1.BundleClient

	revision uint64
	known    map[string]*types.Entry
	held     map[string]*types.Bundle
}

func (p *poller) round(ctx context.Context) error {
	now, err := p.sync(ctx)
	if err != nil {
		return err
	}
	bundles, err := p.fetchBundles(ctx, now)
	if err != nil {
		return err
	}
	delta := p.delta(now, bundles)
	if delta == nil {
		return nil
	}
	if err := p.cache.Apply(delta); err != nil {
		return err
	}
	// SPIRE's API has no digest to compare with.
	return p.cache.Synced(&feedv1.Synced{Revision: delta.GetRevision()})
}

// sync returns every entry the agent is authorized for, asking in full only
// for those whose revision number moved.
func (p *poller) sync(ctx context.Context) (map[string]*types.Entry, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := p.entries.SyncAuthorizedEntries(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&entryv1.SyncAuthorizedEntriesRequest{OutputMask: syncMask()}); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	now := map[string]*types.Entry{}
	var need []string
	take := func(resp *entryv1.SyncAuthorizedEntriesResponse) {
		for _, e := range resp.GetEntries() {
			now[e.GetId()] = e
		}
		for _, r := range resp.GetEntryRevisions() {
			if e, ok := p.known[r.GetId()]; ok && e.GetRevisionNumber() == r.GetRevisionNumber() && e.GetCreatedAt() == r.GetCreatedAt() {
				now[r.GetId()] = e
				continue
			}
			need = append(need, r.GetId())
		}
	}
	if err := receive(stream, take); err != nil {
		return nil, err
	}
	for ids := range slices.Chunk(need, maxSyncEntries) {
		if err := stream.Send(&entryv1.SyncAuthorizedEntriesRequest{Ids: ids}); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if err := receive(stream, take); err != nil {
			return nil, err
		}
	}
	return now, nil
}

// receive reads one answer, which may be split over messages.
func receive(stream entryv1.Entry_SyncAuthorizedEntriesClient, take func(*entryv1.SyncAuthorizedEntriesResponse)) error {
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		take(resp)
		if !resp.GetMore() {
			return nil
		}
	}
}

// fetchBundles returns the bundle of the server's trust domain and those the
// entries federate with. A federated bundle the server does not have is left
// out, as its entries can be served without it.
func (p *poller) fetchBundles(ctx context.Context, entries map[string]*types.Entry) (map[string]*types.Bundle, error) {
	own, err := p.bundles.GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return nil, err
	}
	out := map[string]*types.Bundle{own.GetTrustDomain(): own}
	for _, e := range entries {
		for _, td := range e.GetFederatesWith() {
			if _, ok := out[td]; ok {
				continue
			}
			b, err := p.bundles.GetFederatedBundle(ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: td})
			switch {
			case status.Code(err) == codes.NotFound:
			case err != nil:
				return nil, err
			default:
				out[td] = b
			}
		}
	}
	return out, nil
}

// delta says what changed since the last round; the first round replaces all
// that was held. It returns nil when nothing changed.
func (p *poller) delta(entries map[string]*types.Entry, bundles map[string]*types.Bundle) *feedv1.Delta {
	d := &feedv1.Delta{Revision: p.revision + 1}
	if p.revision == 0 {
		for i := range uint32(feedv1.Buckets) {
			d.Resync = append(d.Resync, i)
		}
	}
	for id, e := range entries {
		if p.known[id] != e {
			d.Upserts = append(d.Upserts, &feedv1.EntryVersion{Entry: e, Revision: d.Revision})
		}
	}
	for id := range p.known {
		if _, ok := entries[id]; !ok {
			d.Removes = append(d.Removes, id)
		}
	}
	for td, b := range bundles {
		if !proto.Equal(p.held[td], b) {
			d.Bundles = append(d.Bundles, &feedv1.BundleState{Bundle: b, Revision: d.Revision})
		}
	}
	for td := range p.held {
		if _, ok := bundles[td]; !ok {
			d.RemovedBundles = append(d.RemovedBundles, td)
		}
	}
	if p.revision > 0 && len(d.Upserts)+len(d.Removes)+len(d.Bundles)+len(d.RemovedBundles) == 0 {
		return nil
	}
	p.revision, p.known, p.held = d.Revision, entries, bundles
	return d
}

func syncMask() *types.EntryMask {
	return &types.EntryMask{
		SpiffeId: true, ParentId: true, Selectors: true, X509SvidTtl: true, JwtSvidTtl: true,
		FederatesWith: true, DnsNames: true, Admin: true, Downstream: true, ExpiresAt: true,
		RevisionNumber: true, StoreSvid: true, Hint: true, CreatedAt: true, AdditionalAttributes: true,
	}
}
