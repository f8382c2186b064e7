package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/credence-id/credence/pkg/store"
)

// EntryResult is the outcome for one entry of a batch.
type EntryResult struct {
	// Entry as it is in the store now. With ErrExists it is the entry that is
	// in the way; with other errors it is nil.
	Entry *Entry
	Err   error
}

// EntryUpdate changes one entry. Change is given a copy; it may run again, and
// an error of it leaves the entry alone. ID, CreatedAt and RevisionNumber are
// not its to set.
type EntryUpdate struct {
	ID     string
	Change func(*Entry) error
}

// CreateEntries makes entries and answers for each, in order. An empty ID is
// filled in with a UUIDv7, a CreatedAt that is empty or cannot be with now;
// RevisionNumber is set. It refuses an entry that breaks a rule (ErrInvalid),
// that federates with a trust domain whose bundle is not there (ErrInvalid), or
// that is similar to another, of this batch or before it, or has its ID
// (ErrExists, with that other entry).
func (r *Registry) CreateEntries(ctx context.Context, entries []*Entry) []EntryResult {
	now := time.Now()
	results := make([]EntryResult, len(entries))
	drafts := make([]*draft, 0, len(entries))
	for i, e := range entries {
		d, err := r.draft(e, now)
		if err != nil {
			results[i].Err = err
			continue
		}
		d.result = &results[i]
		drafts = append(drafts, d)
	}
	first, repeats := splitRepeats(drafts)
	r.createAll(ctx, first, now)
	r.createAll(ctx, repeats, now)
	return results
}

// splitRepeats puts aside drafts that would collide with an earlier one, so
// that the first of a batch wins although Updates run side by side.
func splitRepeats(drafts []*draft) (first, repeats []*draft) {
	seen := make(map[string]struct{}, 2*len(drafts))
	for _, d := range drafts {
		_, similar := seen[d.unique]
		_, same := seen[entryKey(d.entry.ID)]
		seen[d.unique] = struct{}{}
		seen[entryKey(d.entry.ID)] = struct{}{}
		if similar || same {
			repeats = append(repeats, d)
		} else {
			first = append(first, d)
		}
	}
	return first, repeats
}

// createAll writes drafts. Those that only an expired entry stands in the way
// of are tried again when it is removed.
func (r *Registry) createAll(ctx context.Context, drafts []*draft, now time.Time) {
	r.createOnce(ctx, drafts)
	var again []*draft
	for _, d := range drafts {
		if errors.Is(d.result.Err, ErrExists) && d.result.Entry.Expired(now) {
			again = append(again, d)
		}
	}
	if len(again) == 0 {
		return
	}
	if _, err := r.Prune(ctx, now); err != nil {
		for _, d := range again {
			*d.result = EntryResult{Err: err}
		}
		return
	}
	r.createOnce(ctx, again)
}

func (r *Registry) createOnce(ctx context.Context, drafts []*draft) {
	items := make([]item, len(drafts))
	for i, d := range drafts {
		items[i] = item{ops: d.ops(), bytes: d.bytes(), step: d.create, done: d.done}
	}
	r.run(ctx, items)
}

// draft is an entry about to be created: everything that can be done outside
// of the Update is.
type draft struct {
	entry  *Entry
	value  []byte
	unique string
	chosen bool // The client chose the ID.

	twin   *Entry // What stood in the way when create ran last.
	result *EntryResult
}

// clockLead is how far in the future an entry may have been created by another
// server's clock; SPIRE's servers also round to the next second.
const clockLead = time.Minute

// plausible says whether an entry can have been created at a time: of entries
// with one hint the oldest goes before the others. Times far from now do not
// compare, so the seconds are looked at.
func plausible(created, now time.Time) bool {
	return !created.IsZero() && created.Unix() > 0 && created.Unix() <= now.Add(clockLead).Unix()
}

func (r *Registry) draft(in *Entry, now time.Time) (*draft, error) {
	e := in.Clone()
	d := &draft{entry: e, chosen: e.ID != ""}
	if !d.chosen {
		id, err := uuid.NewV7()
		if err != nil {
			return nil, fmt.Errorf("making an entry ID: %w", err)
		}
		e.ID = id.String()
	}
	if !plausible(e.CreatedAt, now) {
		e.CreatedAt = now
	}
	e.CreatedAt, e.RevisionNumber, e.ModRevision = e.CreatedAt.UTC().Truncate(time.Second), 0, 0
	value, err := r.encodeValid(e)
	if err != nil {
		return nil, err
	}
	d.value, d.unique = value, uniqueKey(e)
	return d, nil
}

// encodeValid brings the entry into its stored form.
func (r *Registry) encodeValid(e *Entry) ([]byte, error) {
	e.FederatesWith = normalizeDomains(e.FederatesWith)
	e.ExpiresAt = timeOf(unixOf(e.ExpiresAt))
	if err := e.Validate(r.td); err != nil {
		return nil, err
	}
	return encodeEntry(e)
}

// ops counts what create does when nothing is in the way.
func (d *draft) ops() int {
	n := 3 + bundleOps(d.entry)
	if d.chosen {
		n++
	}
	if !d.entry.ExpiresAt.IsZero() {
		n++
	}
	return n
}

func (d *draft) bytes() int { return len(d.value) + 1<<10 }

func (d *draft) create(tx store.RWTx) (refusal, err error) {
	if d.twin, err = d.collision(tx); err != nil {
		return nil, err
	}
	if d.twin != nil {
		return fmt.Errorf("entry with this ID or parent, SPIFFE ID and selectors %w: %s", ErrExists, d.twin.ID), nil
	}
	if refusal, err = checkBundles(tx, d.entry.FederatesWith); refusal != nil || err != nil {
		return refusal, err
	}
	tx.Put(entryKey(d.entry.ID), d.value)
	tx.Put(d.unique, []byte(d.entry.ID))
	if !d.entry.ExpiresAt.IsZero() {
		tx.Put(expiryKey(d.entry.ExpiresAt, expiresEntry, d.entry.ID), present)
	}
	return nil, nil
}

// collision returns the entry that is in the way, if any.
func (d *draft) collision(tx store.RWTx) (*Entry, error) {
	kv, similar, err := get(tx, d.unique)
	if err != nil {
		return nil, err
	}
	if similar {
		return loadEntry(tx, string(kv.Value))
	}
	if !d.chosen {
		return nil, nil
	}
	e, err := loadEntry(tx, d.entry.ID)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	return e, err
}

func (d *draft) done(rev store.Revision, err error) {
	switch {
	case err == nil:
		d.entry.ModRevision = rev
		*d.result = EntryResult{Entry: d.entry}
	case errors.Is(err, ErrExists):
		*d.result = EntryResult{Entry: d.twin, Err: err}
	default:
		*d.result = EntryResult{Err: err}
	}
}

func loadEntry(tx store.Tx, id string) (*Entry, error) {
	kv, found, err := get(tx, entryKey(id))
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("entry %q: %w", id, ErrNotFound)
	}
	return decodeEntry(kv)
}

// UpdateEntries changes entries and answers for each, in order. The rules of
// CreateEntries hold for the outcome; ErrNotFound for an ID that is not there.
// RevisionNumber counts up.
func (r *Registry) UpdateEntries(ctx context.Context, updates []EntryUpdate) []EntryResult {
	results := make([]EntryResult, len(updates))
	items := make([]item, len(updates))
	now := time.Now()
	for i, u := range updates {
		var out EntryResult
		items[i] = item{
			ops:   6,
			bytes: 1 << 10,
			step: func(tx store.RWTx) (refusal, err error) {
				out, err = r.updateEntry(tx, u, now)
				return out.Err, err
			},
			done: func(rev store.Revision, err error) {
				results[i] = EntryResult{Err: err}
				if err == nil || errors.Is(err, ErrExists) {
					results[i].Entry = out.Entry
				}
				if err == nil {
					out.Entry.ModRevision = rev
				}
			},
		}
	}
	r.run(ctx, items)
	return results
}

func (r *Registry) updateEntry(tx store.RWTx, u EntryUpdate, now time.Time) (EntryResult, error) {
	old, err := loadEntry(tx, u.ID)
	switch {
	case errors.Is(err, ErrNotFound):
		return EntryResult{Err: err}, nil
	case err != nil:
		return EntryResult{}, err
	case old.Expired(now):
		return EntryResult{Err: fmt.Errorf("entry %q: %w", u.ID, ErrNotFound)}, nil
	}
	e := old.Clone()
	if err := u.Change(e); err != nil {
		return EntryResult{Err: err}, nil
	}
	e.ID, e.CreatedAt, e.RevisionNumber = old.ID, old.CreatedAt, old.RevisionNumber+1
	value, err := r.encodeValid(e)
	if err != nil {
		return EntryResult{Err: err}, nil
	}
	return r.replaceEntry(tx, old, e, value)
}

// replaceEntry writes e in the place of old, with the keys that go with it.
func (r *Registry) replaceEntry(tx store.RWTx, old, e *Entry, value []byte) (EntryResult, error) {
	was, is := uniqueKey(old), uniqueKey(e)
	if is != was {
		kv, similar, err := get(tx, is)
		if err != nil {
			return EntryResult{}, err
		}
		if similar {
			twin, err := loadEntry(tx, string(kv.Value))
			if err != nil {
				return EntryResult{}, err
			}
			return EntryResult{Entry: twin, Err: fmt.Errorf("entry with this parent, SPIFFE ID and selectors %w: %s", ErrExists, twin.ID)}, nil
		}
	}
	if refusal, err := checkBundles(tx, added(old, e)); refusal != nil || err != nil {
		return EntryResult{Err: refusal}, err
	}
	if is != was {
		tx.Delete(was)
		tx.Put(is, []byte(e.ID))
	}
	if !e.ExpiresAt.Equal(old.ExpiresAt) {
		if !old.ExpiresAt.IsZero() {
			tx.Delete(expiryKey(old.ExpiresAt, expiresEntry, old.ID))
		}
		if !e.ExpiresAt.IsZero() {
			tx.Put(expiryKey(e.ExpiresAt, expiresEntry, e.ID), present)
		}
	}
	tx.Put(entryKey(e.ID), value)
	return EntryResult{Entry: e}, nil
}

// DeleteEntries removes entries by ID and answers for each, in order: nil,
// ErrNotFound, or the store's error.
func (r *Registry) DeleteEntries(ctx context.Context, ids []string) []error {
	errs := make([]error, len(ids))
	items := make([]item, len(ids))
	for i, id := range ids {
		items[i] = item{
			ops:   deleteEntryOps,
			bytes: 1 << 10,
			step: func(tx store.RWTx) (refusal, err error) {
				e, err := loadEntry(tx, id)
				if errors.Is(err, ErrNotFound) {
					return err, nil
				}
				if err != nil {
					return nil, err
				}
				return nil, deleteEntry(tx, e)
			},
			done: func(_ store.Revision, err error) { errs[i] = err },
		}
	}
	r.run(ctx, items)
	return errs
}

// deleteEntryOps is what loadEntry and deleteEntry cost together.
const deleteEntryOps = 8

// deleteEntry removes an entry and every key that goes with it.
func deleteEntry(tx store.RWTx, e *Entry) error {
	tx.Delete(entryKey(e.ID))
	unique := uniqueKey(e)
	kv, found, err := get(tx, unique)
	if err != nil {
		return err
	}
	if found && bytes.Equal(kv.Value, []byte(e.ID)) {
		tx.Delete(unique)
	}
	if !e.ExpiresAt.IsZero() {
		tx.Delete(expiryKey(e.ExpiresAt, expiresEntry, e.ID))
	}
	return nil
}
