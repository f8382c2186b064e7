package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/store"
)

// Accepts says whether serial is of an SVID the agent may use: the one it last
// showed, or the one issued after it.
func (a *Agent) Accepts(serial string) bool {
	return serial != "" && (serial == a.Serial || serial == a.NextSerial)
}

// Issued notes a new SVID, not yet seen in use. The one in use stays good, so
// that a reply that gets lost locks nobody out.
func (a *Agent) Issued(serial string, notAfter time.Time) {
	a.NextSerial, a.NextNotAfter = serial, notAfter
}

// Used notes that an SVID with this serial was shown. It says whether that
// changed the agent: the first use of the next serial ends the one before.
func (a *Agent) Used(serial string) bool {
	if serial == "" || serial != a.NextSerial {
		return false
	}
	a.Serial, a.NotAfter = a.NextSerial, a.NextNotAfter
	a.NextSerial, a.NextNotAfter = "", time.Time{}
	return true
}

// AttestAgent stores an agent that has proven who it is. publicKey is the DER
// (PKIX) form of the key it will use.
//
// With a join token, the token is bound to the key in the same Update that makes
// the agent: the same key may come again until the token expires, another key
// never. Refusals are ErrTokenUnknown, ErrTokenExpired and ErrTokenUsed, all of
// them ErrTokenRefused. A banned agent gets ErrBanned, whatever its token. One that
// is there and whose evidence cannot be used again gets ErrEvidenceUsed. Nothing
// is written then.
// AttestedAt and AliasEntryID are set here. An agent that attests again keeps the
// serial numbers it has, unless it is given one.
func (r *Registry) AttestAgent(ctx context.Context, agent *Agent, token string, publicKey []byte) (*Agent, error) {
	now := time.Now().UTC().Truncate(time.Second)
	if token != "" && len(publicKey) == 0 {
		return nil, invalid("public_key", "is required with a join token")
	}
	var out *Agent
	rev, err := r.store.Update(ctx, func(tx store.RWTx) error {
		a := agent.Clone()
		a.AttestedAt, a.Banned, a.AliasEntryID, a.ModRevision = now, false, "", 0
		var err error
		out, err = r.attest(tx, a, token, publicKey)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attesting agent: %w", err)
	}
	out.ModRevision = rev
	return out, nil
}

func (r *Registry) attest(tx store.RWTx, a *Agent, token string, publicKey []byte) (*Agent, error) {
	before, err := r.loadAgent(tx, a.ID)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	switch {
	case before == nil:
	case before.Banned:
		// Before the token is looked at: whoever comes back with it is told
		// of the ban, and not that the token is used up.
		return nil, ErrBanned
	case token == "" && !a.CanReattest:
		return nil, ErrEvidenceUsed
	}
	if token != "" {
		alias, err := consume(tx, token, publicKey, before != nil, a.AttestedAt)
		if err != nil {
			return nil, err
		}
		a.AliasEntryID = alias
	}
	if before == nil {
		return a, r.putAgent(tx, a)
	}
	if token == "" {
		a.AliasEntryID = before.AliasEntryID
	}
	if a.Serial == "" {
		a.Serial, a.NotAfter = before.Serial, before.NotAfter
		a.NextSerial, a.NextNotAfter = before.NextSerial, before.NextNotAfter
	}
	if before.AliasEntryID != a.AliasEntryID {
		if err := r.deleteAlias(tx, before.AliasEntryID, a.ID); err != nil {
			return nil, err
		}
	}
	return a, r.putAgent(tx, a)
}

// consume binds a token to a key and returns the alias that was made with it. A
// token that is bound already lets its own key in once more, but only as the
// agent it made: when that was removed, the token is spent.
func consume(tx store.RWTx, token string, publicKey []byte, hasAgent bool, now time.Time) (alias string, err error) {
	key := tokenKey(token)
	kv, found, err := get(tx, key)
	if err != nil {
		return "", err
	}
	if !found {
		return "", ErrTokenUnknown
	}
	t, err := decodeToken(kv)
	if err != nil {
		return "", err
	}
	if !now.Before(t.ExpiresAt) {
		return "", ErrTokenExpired
	}
	sum := sha256.Sum256(publicKey)
	if t.KeyHash != nil {
		if !hasAgent || !bytes.Equal(t.KeyHash, sum[:]) {
			return "", ErrTokenUsed
		}
		return t.AliasEntryID, nil
	}
	t.KeyHash = sum[:]
	value, err := encodeToken(t)
	if err != nil {
		return "", err
	}
	tx.Put(key, value)
	return t.AliasEntryID, nil
}

func (r *Registry) loadAgent(tx store.Tx, id spiffeid.ID) (*Agent, error) {
	if !id.MemberOf(r.td) || len(id.Path()) > maxAgentPath {
		return nil, fmt.Errorf("agent %q: %w", id, ErrNotFound)
	}
	kv, found, err := get(tx, agentKey(id))
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("agent %q: %w", id, ErrNotFound)
	}
	return decodeAgent(r.td, kv)
}

func (r *Registry) putAgent(tx store.RWTx, a *Agent) error {
	if err := a.Validate(r.td); err != nil {
		return err
	}
	value, err := encodeAgent(a)
	if err != nil {
		return err
	}
	tx.Put(agentKey(a.ID), value)
	return nil
}

// LoadAgent reads an agent from the store itself, for when the Index may be
// behind: another server can have issued the serial that is being shown. It
// returns ErrNotFound.
func (r *Registry) LoadAgent(ctx context.Context, id spiffeid.ID) (a *Agent, err error) {
	err = r.store.View(ctx, func(tx store.Tx) error {
		a, err = r.loadAgent(tx, id)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("loading agent: %w", err)
	}
	return a, nil
}

// UpdateAgent changes an agent and returns it as it is now. change is given a
// copy and may run again; its error is returned wrapped and leaves the agent
// alone. A change that changes nothing writes nothing. It returns ErrNotFound,
// and ErrBanned for a banned agent.
func (r *Registry) UpdateAgent(ctx context.Context, id spiffeid.ID, change func(*Agent) error) (*Agent, error) {
	var out *Agent
	var wrote bool
	rev, err := r.store.Update(ctx, func(tx store.RWTx) error {
		old, err := r.loadAgent(tx, id)
		if err != nil {
			return err
		}
		if old.Banned {
			return ErrBanned
		}
		a := old.Clone()
		if err := change(a); err != nil {
			return err
		}
		a.ID, a.Banned, a.AliasEntryID = old.ID, false, old.AliasEntryID
		out, wrote, err = r.replaceAgent(tx, old, a)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("updating agent: %w", err)
	}
	if wrote {
		out.ModRevision = rev
	}
	return out, nil
}

func (r *Registry) replaceAgent(tx store.RWTx, old, a *Agent) (now *Agent, wrote bool, err error) {
	was, err := encodeAgent(old)
	if err != nil {
		return nil, false, err
	}
	is, err := encodeAgent(a)
	if err != nil {
		return nil, false, err
	}
	if bytes.Equal(was, is) {
		return old, false, nil
	}
	return a, true, r.putAgent(tx, a)
}

// BanAgent keeps the agent on record as one that is never let in again, and
// removes its alias. It returns ErrNotFound.
func (r *Registry) BanAgent(ctx context.Context, id spiffeid.ID) error {
	_, err := r.store.Update(ctx, func(tx store.RWTx) error {
		a, err := r.loadAgent(tx, id)
		if err != nil {
			return err
		}
		if err := r.deleteAlias(tx, a.AliasEntryID, id); err != nil {
			return err
		}
		a.Banned, a.AliasEntryID = true, ""
		a.NextSerial, a.NextNotAfter = "", time.Time{}
		return r.putAgent(tx, a)
	})
	if err != nil {
		return fmt.Errorf("banning agent: %w", err)
	}
	return nil
}

// DeleteAgent forgets an agent and removes its alias. It may attest again if its
// attestor lets it; a join token does not. It returns ErrNotFound.
func (r *Registry) DeleteAgent(ctx context.Context, id spiffeid.ID) error {
	_, err := r.store.Update(ctx, func(tx store.RWTx) error {
		a, err := r.loadAgent(tx, id)
		if err != nil {
			return err
		}
		tx.Delete(agentKey(id))
		return r.deleteAlias(tx, a.AliasEntryID, id)
	})
	if err != nil {
		return fmt.Errorf("deleting agent: %w", err)
	}
	return nil
}

// deleteAlias removes the entry that was made with an agent's token, unless it
// was given another parent since.
func (r *Registry) deleteAlias(tx store.RWTx, entryID string, parent spiffeid.ID) error {
	if entryID == "" {
		return nil
	}
	e, err := loadEntry(tx, entryID)
	if errors.Is(err, ErrNotFound) || err == nil && e.ParentID != parent {
		return nil
	}
	if err != nil {
		return err
	}
	return deleteEntry(tx, e)
}
