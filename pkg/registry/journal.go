package registry

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/pkg/store"
	recordv1 "github.com/credence-id/credence/proto/record/v1"
)

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
	var u bundleDraft
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

// FindJournal returns the ID of the server whose journal match says yes to, or ""
// when there is none.
func (r *Registry) FindJournal(ctx context.Context, match func(*recordv1.Journal) bool) (serverID string, err error) {
	err = r.store.View(ctx, func(tx store.Tx) error {
		for kv, err := range tx.Scan(tableJournal, "") {
			if err != nil {
				return err
			}
			j := &recordv1.Journal{}
			if err := proto.Unmarshal(kv.Value, j); err != nil {
				return fmt.Errorf("decoding: %w", err)
			}
			if match(j) {
				serverID = strings.TrimPrefix(kv.Key, tableJournal)
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("looking through the servers' journals: %w", err)
	}
	return serverID, nil
}

// goneWait is how long a server is given to show that it runs, by not letting go
// of its lock.
const goneWait = 2 * time.Second

// UpdateGoneAuthorities is UpdateAuthorities for another server, which does not
// run: that one's lock is held meanwhile. It returns ErrRunning when it does.
func (r *Registry) UpdateGoneAuthorities(ctx context.Context, serverID string, change func(*Bundle, *recordv1.Journal) error) error {
	waiting, cancel := context.WithTimeout(ctx, goneWait)
	defer cancel()
	lock, err := r.store.Lock(waiting, ServerLock(serverID))
	if err != nil {
		if waiting.Err() != nil && ctx.Err() == nil {
			err = ErrRunning
		}
		return fmt.Errorf("updating authorities of server %q: %w", serverID, err)
	}
	defer lock.Unlock()
	_, err = lock.Update(ctx, func(tx store.RWTx) error {
		u, err := beginBundle(tx, r.td)
		if err != nil {
			return err
		}
		if _, err := changeJournal(tx, serverID, func(j *recordv1.Journal) error { return change(u.bundle, j) }); err != nil {
			return err
		}
		return u.write(tx)
	})
	if err != nil {
		return fmt.Errorf("updating authorities of server %q: %w", serverID, err)
	}
	return nil
}

// ServerLock is the name of the store's lock that a server holds while it runs.
func ServerLock(serverID string) string { return "server/" + serverID }
