package feedapi

import (
	"context"
	"fmt"

	"github.com/credence-id/credence/pkg/entitle"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// sender is the one that writes to a stream. It is used by one goroutine at a
// time.
type sender struct {
	hub  *Hub
	st   *stream
	send func(*feedv1.WatchResponse) error
}

// first answers Open: what differs, then Synced.
//
// Buckets are compared only when the cursor is known to be of this very log. A
// store that was restored from a backup writes the revisions
// after the backup a second time, with other content, so the same entry ID at
// the same revision need not be the same entry.
func (s *sender) first(ctx context.Context, open *feedv1.Open, known bool) error {
	var buckets bucketSet
	snap := s.hub.cfg.Graph.Compare(s.st.agent, func(now *[feedv1.Buckets]uint64) func(uint8) bool {
		if known {
			buckets = differing(open.GetBuckets(), now)
		} else {
			buckets.addAll()
		}
		if buckets.empty() {
			return nil
		}
		return buckets.has
	})
	if err := s.marked(ctx, snap); err != nil {
		return err
	}
	for _, b := range open.GetBundles() {
		td, err := spiffeid.TrustDomainFromString(b.GetTrustDomain())
		if err != nil {
			return malformed("open.bundles: %v", err)
		}
		s.st.holds(td, store.Revision(b.GetRevision()), known)
	}
	return s.full(snap, buckets, nil)
}

// drain sends until nothing is pending.
func (s *sender) drain(ctx context.Context) error {
	for {
		// The revision is read before the marks are taken: what was
		// committed up to it has been marked.
		rev := s.hub.published()
		p := s.st.take()
		if p.empty() {
			return nil
		}
		if p.leave {
			if err := s.leave(); err != nil {
				return err
			}
			p.leave = false
		}
		if err := s.round(ctx, rev, p); err != nil {
			return err
		}
	}
}

// round sends the present state of what is pending.
func (s *sender) round(ctx context.Context, rev store.Revision, p pending) error {
	if !p.buckets.empty() {
		return s.resync(ctx, p)
	}
	c := chunks{send: s.send, revision: rev}
	if err := s.entries(&c, p); err != nil {
		return err
	}
	for td := range p.bundles {
		if !s.st.needing(td) {
			continue
		}
		if err := s.bundle(&c, td); err != nil {
			return err
		}
	}
	if p.shrunk {
		if err := s.dropBundles(&c, s.needed(s.hub.cfg.Graph.Domains(s.st.agent))); err != nil {
			return err
		}
	}
	if err := c.end(); err != nil {
		return err
	}
	s.st.progress(rev, false)
	return nil
}

// entries sends each pending entry as it is, or that it is none of the agent's
// (any more).
func (s *sender) entries(c *chunks, p pending) error {
	for id := range p.entries {
		e, ok := s.hub.lookup(s.st.agent, id)
		if !ok {
			if err := c.remove(id); err != nil {
				return err
			}
			continue
		}
		if err := s.entry(c, e); err != nil {
			return err
		}
	}
	return nil
}

// entry sends an entry, after the bundles that it is the first to need.
func (s *sender) entry(c *chunks, e *registry.Packed) error {
	for _, td := range e.FederatesWith() {
		if s.st.needing(td) {
			continue
		}
		if err := s.bundle(c, td); err != nil {
			return err
		}
	}
	return c.entry(e)
}

// resync sends whole buckets, and what is pending beside them, as of one
// snapshot, and closes with its digest.
func (s *sender) resync(ctx context.Context, p pending) error {
	snap, err := s.snapshot(ctx)
	if err != nil {
		return err
	}
	return s.settle(snap, p)
}

// settle brings the agent to a snapshot that was taken after p was. What was
// marked up to the snapshot belongs to it, or the digest would not hold. What
// was marked meanwhile may be of later commits as well, so it stays pending.
func (s *sender) settle(snap entitle.Snapshot, p pending) error {
	late := s.st.take()
	p.merge(late)
	s.st.mark(func(later *pending) { later.merge(late) })
	return s.full(snap, p.buckets, p.entries)
}

// snapshot is what the agent may have at one revision, all of whose marks have
// been made.
func (s *sender) snapshot(ctx context.Context) (entitle.Snapshot, error) {
	snap := s.hub.snapshot(s.st.agent)
	return snap, s.marked(ctx, snap)
}

// marked returns when all marks of the snapshot's revision have been made.
func (s *sender) marked(ctx context.Context, snap entitle.Snapshot) error {
	if err := s.hub.await(ctx, snap.Revision); err != nil {
		return fmt.Errorf("waiting for revision %d: %w", snap.Revision, err)
	}
	return nil
}

// full makes the agent hold exactly the snapshot, given that it differs in the
// named buckets and entries only.
func (s *sender) full(snap entitle.Snapshot, buckets bucketSet, entries map[string]struct{}) error {
	c := chunks{send: s.send, revision: snap.Revision}
	if !buckets.empty() {
		s.hub.metrics.resyncs.Inc()
		c.resync(buckets.list())
	}
	needed := s.needed(snap.Domains)
	for td := range needed {
		if err := s.bundle(&c, td); err != nil {
			return err
		}
	}
	if err := s.snapshotEntries(&c, snap, buckets, entries); err != nil {
		return err
	}
	if err := s.dropBundles(&c, needed); err != nil {
		return err
	}
	if err := c.end(); err != nil {
		return err
	}
	synced := &feedv1.Synced{StoreId: s.hub.storeID, Revision: uint64(snap.Revision), Digest: feedv1.Digest(&snap.Buckets)}
	if err := s.send(&feedv1.WatchResponse{Step: &feedv1.WatchResponse_Synced{Synced: synced}}); err != nil {
		return fmt.Errorf("sending synced: %w", err)
	}
	s.st.progress(snap.Revision, true)
	return nil
}

func (s *sender) snapshotEntries(c *chunks, snap entitle.Snapshot, buckets bucketSet, entries map[string]struct{}) error {
	if buckets.empty() && len(entries) == 0 {
		return nil
	}
	there := make(map[string]struct{}, len(entries))
	for _, e := range snap.Entries {
		id := e.ID()
		_, named := entries[id]
		if named {
			there[id] = struct{}{}
		}
		if !named && !buckets.full() && !buckets.has(feedv1.Bucket(id)) {
			continue
		}
		if err := s.entry(c, e); err != nil {
			return err
		}
	}
	for id := range entries {
		if _, ok := there[id]; ok {
			continue
		}
		if err := c.remove(id); err != nil {
			return err
		}
	}
	return nil
}

// bundle makes the agent one that needs the bundle, and sends it if the agent
// has another one or none. That it needs it is recorded before the bundle is
// read, so that a change between the two is marked.
func (s *sender) bundle(c *chunks, td spiffeid.TrustDomain) error {
	have := s.st.need(td)
	b, ok := s.hub.cfg.Index.Bundle(td)
	switch {
	case !ok && have == 0:
		return nil
	case !ok:
		s.st.has(td, 0)
		return c.removeBundle(td.Name())
	case b.ModRevision == have:
		return nil
	}
	raw, err := s.hub.wire.bundle(b)
	if err != nil {
		return err
	}
	s.st.has(td, b.ModRevision)
	return c.encoded(raw)
}

// dropBundles takes away the bundles that are not needed.
func (s *sender) dropBundles(c *chunks, needed map[spiffeid.TrustDomain]struct{}) error {
	for _, td := range s.st.unneeded(needed) {
		if err := c.removeBundle(td.Name()); err != nil {
			return err
		}
	}
	return nil
}

// needed are the trust domains whose bundles go with the entries: our own, and
// those that an entry federates with.
func (s *sender) needed(domains map[spiffeid.TrustDomain]struct{}) map[spiffeid.TrustDomain]struct{} {
	domains[s.hub.cfg.TrustDomain] = struct{}{}
	return domains
}
