package cache

import (
	"container/list"
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// entry is one version of an entry, parsed. It does not change.
type entry struct {
	version   *feedv1.EntryVersion
	id        string
	spiffeID  spiffeid.ID
	selectors attest.Selectors
	federates []string // trust domain names
	hint      string
	createdAt int64
	expiresAt time.Time // zero: never
	prefetch  bool
	jti       bool
	// refused is why the entry is held, as the digest counts it, but never
	// served.
	refused error
}

// errStored is no fault: such an entry's SVIDs go to a store, not to workloads.
var errStored = errors.New("store_svid is set")

func parseEntry(td spiffeid.TrustDomain, v *feedv1.EntryVersion) *entry {
	raw := v.GetEntry()
	e := &entry{
		version: v, id: raw.GetId(), hint: raw.GetHint(), createdAt: raw.GetCreatedAt(),
		prefetch: !raw.GetAdditionalAttributes().GetDisableX509SvidPrefetch(),
		jti:      raw.GetAdditionalAttributes().GetJwtSvidIncludeJti(),
	}
	if at := raw.GetExpiresAt(); at != 0 {
		e.expiresAt = time.Unix(at, 0)
	}
	for _, name := range raw.GetFederatesWith() {
		foreign, err := spiffeid.TrustDomainFromString(name)
		if err == nil && foreign != td {
			e.federates = append(e.federates, foreign.Name())
		}
	}
	e.refused = e.parse(td, raw)
	return e
}

func (e *entry) parse(td spiffeid.TrustDomain, raw *types.Entry) error {
	if raw.GetStoreSvid() {
		return errStored
	}
	entryTD, err := spiffeid.TrustDomainFromString(raw.GetSpiffeId().GetTrustDomain())
	if err != nil {
		return fmt.Errorf("spiffe_id: %w", err)
	}
	if entryTD != td {
		return fmt.Errorf("spiffe_id is of trust domain %q, not of ours", entryTD.Name())
	}
	if e.spiffeID, err = spiffeid.FromPath(td, raw.GetSpiffeId().GetPath()); err != nil {
		return fmt.Errorf("spiffe_id: %w", err)
	}
	selectors := make([]attest.Selector, 0, len(raw.GetSelectors()))
	for _, s := range raw.GetSelectors() {
		selectors = append(selectors, attest.Selector{Type: s.GetType(), Value: s.GetValue()})
	}
	e.selectors = attest.NewSelectors(selectors...)
	if len(e.selectors) == 0 {
		return errors.New("there are no selectors, which would match every workload")
	}
	return e.selectors.Validate()
}

func (e *entry) expired(now time.Time) bool {
	return !e.expiresAt.IsZero() && !now.Before(e.expiresAt)
}

// older orders entries that claim the same hint: the first keeps it.
func (e *entry) older(o *entry) bool {
	if e.createdAt != o.createdAt {
		return e.createdAt < o.createdAt
	}
	return e.id < o.id
}

// record is what the cache knows of one entry. Guarded by Cache.mu.
type record struct {
	// entry is the newest version; shown is the one that svid was minted for
	// and that workloads see until the newest has an SVID or is refused one.
	entry, shown *entry
	edition      int // counts the changes of entry's content
	svid         *x509SVID
	unconfirmed  bool // by the resync that is under way
	gone         bool // removed; results that arrive are dropped

	// live: in the index. grantees has who matches.
	live     bool
	anchor   attest.Selector
	anchorAt int // place in the index's list of anchor
	grantees map[*grantee]struct{}
	demand   int // grantees somebody waits on for X509-SVIDs

	// kept: an X509-SVID is wanted. unused is its place among those without
	// demand.
	kept   bool
	unused *list.Element
	state  mintState
	// fresh: the first attempt to mint what is wanted has not ended yet.
	fresh bool
	// failed is why the last attempt failed, tries how many did in a row.
	failed error
	tries  int
	// mintAt is when the next attempt is due, for a rotation or after a
	// failure.
	mintAt time.Time
	due    time.Time
	dueAt  int // index in the heap; -1: not in it

	jwts map[string]*jwtSVID // by audience key
}

type mintState int

const (
	idle mintState = iota
	queued
	queuedUrgent
	minting
)

// wants says whether there is no SVID for the newest version.
func (r *record) wants() bool { return r.svid == nil || r.shown != r.entry }

// visible is the version that workloads see.
func (r *record) visible() *entry {
	if r.shown != nil {
		return r.shown
	}
	return r.entry
}

// pending says whether workloads should wait for the attempt under way.
func (r *record) pending() bool { return r.fresh && r.wants() }

// x509SVID is an X509-SVID with its key. It does not change.
type x509SVID struct {
	chain   []byte   // DER certificates, leaf first
	key     []byte   // PKCS#8 DER
	issuers []string // authority key IDs of the chain
	issued  time.Time
	// notAfter is the leaf's.
	notAfter time.Time
}
