package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/pkg/store"
	recordv1 "github.com/credence-id/credence/proto/record/v1"
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
	var u bundleUpdate
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

// bundleUpdate is a bundle being changed within an Update.
type bundleUpdate struct {
	before []byte // nil for a new bundle
	bundle *Bundle
	td     spiffeid.TrustDomain
	seq    uint64
	wrote  bool
}

func beginBundle(tx store.RWTx, td spiffeid.TrustDomain) (bundleUpdate, error) {
	if td.IsZero() {
		return bundleUpdate{}, invalid("trust_domain", "is required")
	}
	u := bundleUpdate{td: td, bundle: &Bundle{TrustDomain: td}}
	kv, found, err := get(tx, bundleKey(td))
	if err != nil || !found {
		return u, err
	}
	if u.bundle, err = decodeBundle(kv); err != nil {
		return bundleUpdate{}, err
	}
	u.seq = u.bundle.SequenceNumber
	u.before, err = encodeBundle(u.bundle)
	return u, err
}

func (u *bundleUpdate) write(tx store.RWTx) error {
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
func (u *bundleUpdate) at(rev store.Revision) *Bundle {
	if u.wrote {
		u.bundle.ModRevision = rev
	}
	return u.bundle
}

// DeleteBundle removes the bundle of another trust domain. Entries that name it
// keep the name, and get no bundle for it until there is one again. It returns
// ErrNotFound.
func (r *Registry) DeleteBundle(ctx context.Context, td spiffeid.TrustDomain) error {
	if td == r.td {
		return invalid("trust_domain", "the bundle of this server's own trust domain cannot be deleted")
	}
	_, err := r.store.Update(ctx, func(tx store.RWTx) error {
		_, found, err := get(tx, bundleKey(td))
		if err != nil {
			return err
		}
		if !found {
			return ErrNotFound
		}
		tx.Delete(bundleKey(td))
		return nil
	})
	if err != nil {
		return fmt.Errorf("deleting bundle of %q: %w", td.Name(), err)
	}
	return nil
}

// LoadJournal reads what a server noted of its authorities; empty when it noted
// nothing.
func (r *Registry) LoadJournal(ctx context.Context, serverID string) (*recordv1.Journal, error) {
	j := &recordv1.Journal{}
	err := r.store.View(ctx, func(tx store.Tx) (err error) {
		j, err = loadJournal(tx, serverID)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("loading journal of server %q: %w", serverID, err)
	}
	return j, nil
}

func loadJournal(tx store.Tx, serverID string) (*recordv1.Journal, error) {
	j := &recordv1.Journal{}
	kv, found, err := get(tx, journalKey(serverID))
	if err != nil || !found {
		return j, err
	}
	if err := proto.Unmarshal(kv.Value, j); err != nil {
		return nil, fmt.Errorf("decoding: %w", err)
	}
	return j, nil
}

// UpdateJournal changes a server's journal and returns it as it is now. change
// may run again.
func (r *Registry) UpdateJournal(ctx context.Context, serverID string, change func(*recordv1.Journal) error) (*recordv1.Journal, error) {
	var j *recordv1.Journal
	_, err := r.store.Update(ctx, func(tx store.RWTx) (err error) {
		j, err = changeJournal(tx, serverID, change)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("updating journal of server %q: %w", serverID, err)
	}
	return j, nil
}

func changeJournal(tx store.RWTx, serverID string, change func(*recordv1.Journal) error) (*recordv1.Journal, error) {
	if serverID == "" {
		return nil, invalid("server_id", "is required")
	}
	if err := checkEntryID(serverID); err != nil {
		return nil, errors.Join(invalid("server_id", "cannot be used as a key"), err)
	}
	j, err := loadJournal(tx, serverID)
	if err != nil {
		return nil, err
	}
	if err := change(j); err != nil {
		return nil, err
	}
	value, err := encode(j)
	if err != nil {
		return nil, err
	}
	tx.Put(journalKey(serverID), value)
	return j, nil
}

// UpdateAuthorities changes the bundle of this server's trust domain and the
// journal of one server in one Update, so that no server ever holds a key that
// the bundle does not. change may run again. It returns both as they are now.
func (r *Registry) UpdateAuthorities(ctx context.Context, serverID string, change func(*Bundle, *recordv1.Journal) error) (*Bundle, *recordv1.Journal, error) {
	var u bundleUpdate
	var j *recordv1.Journal
	rev, err := r.store.Update(ctx, func(tx store.RWTx) error {
		var err error
		if u, err = beginBundle(tx, r.td); err != nil {
			return err
		}
		j, err = changeJournal(tx, serverID, func(j *recordv1.Journal) error { return change(u.bundle, j) })
		if err != nil {
			return err
		}
		return u.write(tx)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("updating authorities of server %q: %w", serverID, err)
	}
	return u.at(rev), j, nil
}
