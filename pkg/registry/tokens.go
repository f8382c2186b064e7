package registry

import (
	"context"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/store"
)

// CreateJoinToken stores the hash of a token that lets one agent attest until
// ttl (at least one second) is over. alias, if not nil, is an entry that is made
// in the same Update and goes with the agent, or with the token when nobody used
// it. It returns ErrExists for a token that is there, and what CreateEntries
// would return for the alias. An expiry falls on a whole second, not earlier
// than asked for.
func (r *Registry) CreateJoinToken(ctx context.Context, token string, ttl time.Duration, alias *Entry) (*JoinToken, error) {
	now := time.Now()
	if err := checkToken(token, ttl); err != nil {
		return nil, err
	}
	t := &JoinToken{ExpiresAt: now.Add(ttl + time.Second - 1).UTC().Truncate(time.Second)}
	var d *draft
	if alias != nil {
		var err error
		if d, err = r.draft(alias, now); err != nil {
			return nil, fmt.Errorf("alias of join token: %w", err)
		}
		t.AliasEntryID = d.entry.ID
	}
	value, err := encodeToken(t)
	if err != nil {
		return nil, err
	}
	_, err = r.store.Update(ctx, func(tx store.RWTx) error {
		return putToken(tx, token, t, value, d)
	})
	if err != nil {
		return nil, fmt.Errorf("creating join token: %w", err)
	}
	return t, nil
}

func putToken(tx store.RWTx, token string, t *JoinToken, value []byte, alias *draft) error {
	key := tokenKey(token)
	_, found, err := get(tx, key)
	if err != nil {
		return err
	}
	if found {
		return fmt.Errorf("join token %w", ErrExists)
	}
	if alias != nil {
		refusal, err := alias.create(tx)
		if err != nil {
			return err
		}
		if refusal != nil {
			return fmt.Errorf("alias: %w", refusal)
		}
	}
	tx.Put(key, value)
	tx.Put(expiryKey(t.ExpiresAt, expiresToken, key[len(tableToken):]), present)
	return nil
}

// checkToken keeps tokens to what can be the last segment of an agent's ID. The
// error does not quote the token.
func checkToken(token string, ttl time.Duration) error {
	if len(token) > maxID {
		return invalid("token", "is %d bytes long, at most %d are allowed", len(token), maxID)
	}
	if err := spiffeid.ValidatePathSegment(token); err != nil {
		return invalid("token", "%v", err)
	}
	if ttl < time.Second {
		return invalid("ttl", "must be at least one second")
	}
	return nil
}
