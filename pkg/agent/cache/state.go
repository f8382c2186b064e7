package cache

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/pkg/telemetry"
	agentstatev1 "github.com/credence-id/credence/proto/agentstate/v1"
)

// Snapshot is what an agent keeps across a restart: cursor, entries, bundles,
// and, withKeys, the X509-SVIDs with their private keys. There are never JWTs in
// it. Entries and bundles in it are shared and must not be changed.
func (c *Cache) Snapshot(withKeys bool) *agentstatev1.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &agentstatev1.State{StoreId: c.cursor.storeID, Revision: c.cursor.revision}
	for _, b := range c.bundles {
		s.Bundles = append(s.Bundles, b.version)
	}
	for id, r := range c.records {
		s.Entries = append(s.Entries, r.entry.version)
		if withKeys && r.svid != nil && r.shown == r.entry {
			s.X509Svids = append(s.X509Svids, &agentstatev1.X509SVID{
				EntryId: id, EntryRevision: r.entry.version.GetRevision(),
				Chain: r.svid.chain, PrivateKey: r.svid.key, IssuedAt: r.svid.issued.UnixMilli(),
			})
		}
	}
	return s
}

// Restore takes up what an earlier run kept, before Run; it is an error later.
// What cannot be used is left out and reported: SVIDs that have expired or do not
// fit their entry, bundles and entries that make no sense. Workloads are served
// from it once the server has not been reached for a second, or Away was called.
func (c *Cache) Restore(s *agentstatev1.State) error {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.records) > 0 || c.phase.Load().synced {
		return errors.New("restoring the cache's state: the cache is in use")
	}
	c.cursor.storeID, c.cursor.revision = s.GetStoreId(), s.GetRevision()
	for _, v := range s.GetBundles() {
		b, err := parseBundle(v)
		if err != nil {
			c.log.Warn("a bundle of an earlier run cannot be used in full", telemetry.Err, err)
		}
		if b != nil {
			c.putBundle(b, now)
		}
	}
	for _, v := range s.GetEntries() {
		if v.GetEntry().GetId() != "" {
			c.put(parseEntry(c.cfg.TrustDomain, v), now)
		}
	}
	for _, v := range s.GetX509Svids() {
		r := c.records[v.GetEntryId()]
		if r == nil || !r.live || r.entry.version.GetRevision() != v.GetEntryRevision() {
			continue
		}
		svid, err := restoreSVID(r.entry, v, now)
		if err != nil {
			c.log.Info("an X509-SVID of an earlier run is not used", telemetry.EntryID, v.GetEntryId(), telemetry.Err, err)
			continue
		}
		c.adopt(r, svid)
	}
	c.settled(now)
	return nil
}

func restoreSVID(e *entry, v *agentstatev1.X509SVID, now time.Time) (*x509SVID, error) {
	key, err := x509.ParsePKCS8PrivateKey(v.GetPrivateKey())
	if err != nil {
		return nil, errors.New("the private key cannot be read") // the library's error could say too much of it
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the private key is a %T", key)
	}
	svid, err := newX509SVID(e.spiffeID, [][]byte{v.GetChain()}, signer, v.GetPrivateKey(), now)
	if err != nil {
		return nil, err
	}
	if issued := time.UnixMilli(v.GetIssuedAt()); issued.Before(svid.issued) {
		svid.issued = issued
	}
	return svid, nil
}

// adopt gives the record an SVID that was not minted now.
func (c *Cache) adopt(r *record, svid *x509SVID) {
	if !r.kept {
		r.kept = true
		c.kept++
		delete(c.cold, r)
		r.unused = c.unused.PushBack(r)
	}
	r.svid, r.shown, r.fresh = svid, r.entry, false
	r.state = idle // its place in a queue is passed over
	r.mintAt = c.rotateAt(svid)
	c.touch(r)
	c.schedule(r)
}
