package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/store"
)

// The rule of this file: an entry federates only with trust domains whose bundle
// is there. Who adds a trust domain to an entry looks for its bundle in the same
// Update; who deletes a bundle first takes it from every entry.

// scanBundles is from how many trust domains on all bundles are listed, instead
// of asking for each.
const scanBundles = 32

// bundleOps is what checkBundles costs: the bundles, and the mark of a deletion.
func bundleOps(e *Entry) int {
	if len(e.FederatesWith) == 0 {
		return 0
	}
	return min(len(e.FederatesWith), scanBundles) + 3
}

// added are the trust domains that e federates with and old did not.
func added(old, e *Entry) []spiffeid.TrustDomain {
	return slices.DeleteFunc(slices.Clone(e.FederatesWith), func(td spiffeid.TrustDomain) bool {
		return slices.Contains(old.FederatesWith, td)
	})
}

// checkBundles is part of every Update that lets an entry federate with trust
// domains that it did not federate with before. It refuses one whose bundle is
// not known, and removes the mark of a deletion that is under way, which then
// looks for entries anew.
func checkBundles(tx store.RWTx, domains []spiffeid.TrustDomain) (refusal, err error) {
	if len(domains) == 0 {
		return nil, nil
	}
	known := make(map[string]bool)
	if len(domains) >= scanBundles {
		for kv, err := range tx.Scan(tableBundle, "") {
			if err != nil {
				return nil, err
			}
			known[kv.Key] = true
		}
	}
	for _, td := range domains {
		key := bundleKey(td)
		if len(domains) < scanBundles {
			if _, known[key], err = get(tx, key); err != nil {
				return nil, err
			}
		}
		if !known[key] {
			return invalid("federates_with", "unable to find federated bundle %q; set the bundle of that trust domain first", td.IDString()), nil
		}
	}
	mark, found, err := get(tx, keyDissolving)
	if err != nil || !found {
		return nil, err
	}
	name, _, _ := strings.Cut(string(mark.Value), " ")
	if slices.ContainsFunc(domains, func(td spiffeid.TrustDomain) bool { return td.Name() == name }) {
		tx.Delete(keyDissolving)
	}
	return nil, nil
}

// DeleteMode says what becomes of entries that federate with a trust domain
// whose bundle is deleted.
type DeleteMode int

// Modes of DeleteBundle.
const (
	// Restrict refuses the deletion.
	Restrict DeleteMode = iota
	// Dissociate lets the entries federate with it no more.
	Dissociate
	// Delete deletes the entries.
	Delete
)

const (
	// bundleLock is the store's lock that deletions are made under.
	bundleLock = "bundles"
	// deleteAttempts bounds how often a deletion begins anew because entries
	// were added meanwhile.
	deleteAttempts = 8
)

// DeleteBundle removes the bundle of another trust domain. ix is a followed
// index, and fresh returns once it is as new as the store was at the call. It
// returns ErrNotFound, a [FederatedError], or ErrConflict when new entries keep
// coming.
//
// However many entries federate with it, at no revision does one of them
// federate with a bundle that is not there: they are changed first, in Updates
// of bounded size, and the bundle goes last, in an Update that holds that no
// other came meanwhile. What was done before an error stays done; the same call
// goes on from there.
func (r *Registry) DeleteBundle(ctx context.Context, td spiffeid.TrustDomain, mode DeleteMode, ix *Index, fresh func(context.Context) error) error {
	if td == r.td {
		return invalid("trust_domain", "the bundle of this server's own trust domain cannot be deleted")
	}
	lock, err := r.store.Lock(ctx, bundleLock)
	if err != nil {
		return fmt.Errorf("deleting bundle of %q: %w", td.Name(), err)
	}
	defer lock.Unlock()
	d := &deletion{registry: r, lock: lock, td: td, mode: mode, index: ix, fresh: fresh}
	for range deleteAttempts {
		gone, err := d.attempt(ctx)
		if err != nil {
			return fmt.Errorf("deleting bundle of %q: %w", td.Name(), err)
		}
		if gone {
			return nil
		}
	}
	return fmt.Errorf("deleting bundle of %q: %w: entries are being made to federate with it", td.Name(), ErrConflict)
}

// deletion is one call of DeleteBundle.
type deletion struct {
	registry *Registry
	lock     store.Lock
	td       spiffeid.TrustDomain
	mode     DeleteMode
	index    *Index
	fresh    func(context.Context) error
}

// attempt marks the bundle, takes it from the entries, and deletes it if the
// mark is still there: whoever lets an entry federate with it removes the mark.
// All entries that did before the mark are in the index once it is fresh.
func (d *deletion) attempt(ctx context.Context) (gone bool, err error) {
	mark := d.td.Name() + " " + uuid.NewString()
	if err := d.setMark(ctx, mark); err != nil {
		return false, err
	}
	if err := d.fresh(ctx); err != nil {
		return false, err
	}
	n := d.index.CountEntries(d.filter(), time.Now())
	if n > 0 && d.mode == Restrict {
		if _, err := d.clear(ctx, mark, false); err != nil {
			return false, err
		}
		return false, &FederatedError{Entries: n}
	}
	if n > 0 {
		if err := d.sweep(ctx); err != nil {
			return false, err
		}
	}
	return d.clear(ctx, mark, true)
}

func (d *deletion) filter() EntryFilter {
	return EntryFilter{FederatesWith: []spiffeid.TrustDomain{d.td}, FederatesWithMatch: MatchAny}
}

func (d *deletion) setMark(ctx context.Context, mark string) error {
	_, err := d.lock.Update(ctx, func(tx store.RWTx) error {
		_, found, err := get(tx, bundleKey(d.td))
		if err != nil {
			return err
		}
		if !found {
			return ErrNotFound
		}
		tx.Put(keyDissolving, []byte(mark))
		return nil
	})
	return err
}

// clear removes the mark, and the bundle if that is asked for, unless the mark
// is gone already.
func (d *deletion) clear(ctx context.Context, mark string, bundle bool) (done bool, err error) {
	_, err = d.lock.Update(ctx, func(tx store.RWTx) error {
		kv, found, err := get(tx, keyDissolving)
		if err != nil {
			return err
		}
		if done = found && string(kv.Value) == mark; !done {
			return nil
		}
		tx.Delete(keyDissolving)
		if bundle {
			tx.Delete(bundleKey(d.td))
		}
		return nil
	})
	return done, err
}

// sweep takes the trust domain from every entry that the index has, a page at a
// time.
func (d *deletion) sweep(ctx context.Context) error {
	now := time.Now()
	for after := ""; ; {
		entries, next := d.index.ListEntries(d.filter(), after, MaxPage, now)
		errs := make([]error, len(entries))
		items := make([]item, len(entries))
		for i, e := range entries {
			items[i] = item{
				ops:   deleteEntryOps,
				bytes: 1 << 10,
				step:  func(tx store.RWTx) (refusal, err error) { return d.release(tx, e.ID, now) },
				done:  func(_ store.Revision, err error) { errs[i] = err },
			}
		}
		d.registry.run(ctx, items)
		if err := errors.Join(errs...); err != nil {
			return err
		}
		if next == "" {
			return nil
		}
		after = next
	}
}

// release takes the trust domain from one entry, by the entry as it is now.
func (d *deletion) release(tx store.RWTx, id string, now time.Time) (refusal, err error) {
	e, err := loadEntry(tx, id)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	switch {
	case !slices.Contains(e.FederatesWith, d.td):
		return nil, nil
	case d.mode == Delete:
		return nil, deleteEntry(tx, e)
	}
	out, err := d.registry.updateEntry(tx, EntryUpdate{ID: id, Change: func(e *Entry) error {
		e.FederatesWith = slices.DeleteFunc(e.FederatesWith, func(td spiffeid.TrustDomain) bool { return td == d.td })
		return nil
	}}, now)
	if errors.Is(out.Err, ErrNotFound) {
		return nil, err
	}
	return out.Err, err
}
