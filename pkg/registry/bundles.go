package registry

import (
	"bytes"
	"context"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/store"
)

// LoadBundle reads a bundle from the store itself. It returns ErrNotFound.
func (r *Registry) LoadBundle(ctx context.Context, td spiffeid.TrustDomain) (b *Bundle, err error) {
	err = r.store.View(ctx, func(tx store.Tx) error {
		kv, found, err := get(tx, bundleKey(td))
		if err != nil {
			return err
		}
		if !found {
			return ErrNotFound
		}
		b, err = decodeBundle(kv)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("loading bundle of %q: %w", td.Name(), err)
	}
	return b, nil
}

// UpdateBundle changes a bundle, or makes it, and returns it as it is now.
// change is given a copy, empty for a new bundle, and may run again. The
// sequence number counts up with every change; a change that changes nothing
// writes nothing.
func (r *Registry) UpdateBundle(ctx context.Context, td spiffeid.TrustDomain, change func(*Bundle) error) (*Bundle, error) {
	var u bundleDraft
	rev, err := r.store.Update(ctx, func(tx store.RWTx) error {
		var err error
		if u, err = beginBundle(tx, td); err != nil {
			return err
		}
		if err := change(u.bundle); err != nil {
			return err
		}
		return u.write(tx)
	})
	if err != nil {
		return nil, fmt.Errorf("updating bundle of %q: %w", td.Name(), err)
	}
	return u.at(rev), nil
}

// bundleDraft is a bundle being changed within an Update.
type bundleDraft struct {
	before []byte // nil for a new bundle
	bundle *Bundle
	td     spiffeid.TrustDomain
	seq    uint64
	wrote  bool
}

func beginBundle(tx store.RWTx, td spiffeid.TrustDomain) (bundleDraft, error) {
	if td.IsZero() {
		return bundleDraft{}, invalid("trust_domain", "is required")
	}
	u := bundleDraft{td: td, bundle: &Bundle{TrustDomain: td}}
	kv, found, err := get(tx, bundleKey(td))
	if err != nil || !found {
		return u, err
	}
	if u.bundle, err = decodeBundle(kv); err != nil {
		return bundleDraft{}, err
	}
	u.seq = u.bundle.SequenceNumber
	u.before, err = encodeBundle(u.bundle)
	return u, err
}

func (u *bundleDraft) write(tx store.RWTx) error {
	u.bundle.TrustDomain, u.bundle.SequenceNumber = u.td, u.seq
	value, err := encodeBundle(u.bundle)
	if err != nil {
		return err
	}
	if u.before != nil && bytes.Equal(u.before, value) {
		return nil
	}
	u.bundle.SequenceNumber, u.wrote = u.seq+1, true
	if value, err = encodeBundle(u.bundle); err != nil {
		return err
	}
	tx.Put(bundleKey(u.td), value)
	return nil
}

// at is the bundle after the Update that returned rev.
func (u *bundleDraft) at(rev store.Revision) *Bundle {
	if u.wrote {
		u.bundle.ModRevision = rev
	}
	return u.bundle
}

// AppendBundle adds authorities to the bundle of this server's own trust domain
// and returns it as it is now. What the bundle has already stays as it is. It
// returns ErrNotFound, and refuses what breaks a rule of [Bundle.Validate]
// (ErrInvalid), such as a key ID that another key has, and what would fill the
// bundle up: the next authority of a server must always have room in it.
func (r *Registry) AppendBundle(ctx context.Context, add *Bundle) (*Bundle, error) {
	return r.UpdateBundle(ctx, r.td, func(b *Bundle) error {
		if b.SequenceNumber == 0 { // It counts from 1.
			return ErrNotFound
		}
		before := b.size()
		if err := b.append(add); err != nil {
			return err
		}
		if n := b.size(); n > before && n > maxAppended {
			return invalid("bundle", "would be %d bytes long, and at most %d are allowed after authorities of others were appended: remove some first", n, maxAppended)
		}
		return nil
	})
}

// BundleUpdate changes the bundle of one other trust domain. Change is given a
// copy, nil if there is no bundle, and returns the bundle as it shall be, its
// sequence number included: that is the other trust domain's to count. It may
// run again, and an error of it leaves the bundle alone.
type BundleUpdate struct {
	TrustDomain spiffeid.TrustDomain
	Change      func(now *Bundle) (*Bundle, error)
}

// BundleResult is the outcome of one update: the bundle as it is in the store
// now, or the error.
type BundleResult struct {
	Bundle *Bundle
	Err    error
}

// UpdateBundles changes bundles of other trust domains and answers for each, in
// order. It refuses what breaks a rule, and this server's own trust domain
// (ErrInvalid). A change that changes nothing writes nothing.
func (r *Registry) UpdateBundles(ctx context.Context, updates []BundleUpdate) []BundleResult {
	results := make([]BundleResult, len(updates))
	names := make([]spiffeid.TrustDomain, len(updates))
	items := make([]item, len(updates))
	for i, u := range updates {
		names[i] = u.TrustDomain
		var out *Bundle
		var wrote bool
		items[i] = item{
			ops:   2,
			bytes: bundleGuess,
			step: func(tx store.RWTx) (refusal, err error) {
				out, wrote, refusal, err = r.changeBundle(tx, u)
				return refusal, err
			},
			done: func(rev store.Revision, err error) {
				if err != nil {
					results[i].Err = err
					return
				}
				if wrote {
					out.ModRevision = rev
				}
				results[i].Bundle = out
			},
		}
	}
	r.runInTurn(ctx, names, items)
	return results
}

// bundleGuess is the bytes a usual bundle takes; one that is larger splits its
// Update.
const bundleGuess = 32 << 10

func (r *Registry) changeBundle(tx store.RWTx, u BundleUpdate) (b *Bundle, wrote bool, refusal, err error) {
	if refusal := r.checkForeign(u.TrustDomain); refusal != nil {
		return nil, false, refusal, nil
	}
	kv, found, err := get(tx, bundleKey(u.TrustDomain))
	if err != nil {
		return nil, false, nil, err
	}
	var now *Bundle
	if found {
		if now, err = decodeBundle(kv); err != nil {
			return nil, false, nil, err
		}
		now = now.Clone()
	}
	if b, refusal = u.Change(now); refusal != nil {
		return nil, false, refusal, nil
	}
	b, wrote, refusal = putBundle(tx, u.TrustDomain, kv.Value, b)
	if refusal == nil && !wrote {
		b.ModRevision = kv.ModRevision
	}
	return b, wrote, refusal, nil
}

// putBundle writes a copy of b as the bundle of td, if that is not what was
// there before, and returns it.
func putBundle(tx store.RWTx, td spiffeid.TrustDomain, before []byte, b *Bundle) (now *Bundle, wrote bool, refusal error) {
	now = b.Clone()
	now.TrustDomain, now.ModRevision = td, 0
	if refusal := now.Validate(); refusal != nil {
		return nil, false, refusal
	}
	value, refusal := encodeBundle(now)
	if refusal != nil {
		return nil, false, refusal
	}
	if before != nil && bytes.Equal(before, value) {
		return now, false, nil
	}
	tx.Put(bundleKey(td), value)
	return now, true, nil
}
