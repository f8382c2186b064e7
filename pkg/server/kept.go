package server

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/pkg/atomicfile"
	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/svid"
	"github.com/credence-id/credence/pkg/telemetry"
	recordv1 "github.com/credence-id/credence/proto/record/v1"
)

// keptFile is in data_dir.
const keptFile = "authorities.json"

// kept is a copy of this server's journal beside its keys. A store that is put
// back to a backup has forgotten the authorities that were made since, and what
// was tainted and revoked; without the copy the server would make a new one,
// which no agent trusts, and trust again what an operator had withdrawn.
type kept struct {
	path              string
	storeID, serverID string
	trustDomain       string
	registry          *registry.Registry
	log               *slog.Logger
	// changed has a value when the journal may be another one. Capacity 1.
	changed chan struct{}
}

// keptJournal is the file's content.
type keptJournal struct {
	// TrustDomain is that of the authorities.
	TrustDomain string `json:"trust_domain"`
	// StoreID is that of the store the journal was read from.
	StoreID string `json:"store_id"`
	// Journal is a record.v1.Journal. It has no private keys.
	Journal []byte `json:"journal"`
}

// note says that the bundle of this trust domain has changed, and with it
// perhaps the journal.
func (k *kept) note() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// Run keeps the copy until ctx ends. One that cannot be written harms nothing
// now, and is tried at the next change.
func (k *kept) Run(ctx context.Context) error {
	for {
		if err := k.write(ctx); err != nil && ctx.Err() == nil {
			k.log.WarnContext(ctx, "the copy of this server's journal was not written, a restored store would cut its agents off",
				telemetry.Path, k.path, telemetry.Err, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-k.changed:
		}
	}
}

func (k *kept) write(ctx context.Context) error {
	j, err := k.registry.LoadJournal(ctx, k.serverID)
	if err != nil {
		return err
	}
	journal, err := proto.MarshalOptions{Deterministic: true}.Marshal(j)
	if err != nil {
		return err
	}
	data, err := json.Marshal(keptJournal{TrustDomain: k.trustDomain, StoreID: k.storeID, Journal: journal})
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(k.path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	return atomicfile.Write(k.path, data, 0o600)
}

// read returns the copy if it is of another store of the same trust domain; nil:
// there is none. The authorities of another trust domain are never published as
// this one's, whatever became of data_dir.
func (k *kept) read() (*recordv1.Journal, error) {
	data, err := os.ReadFile(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the copy of this server's journal: %w", err)
	}
	var f keptJournal
	var j recordv1.Journal
	if err = json.Unmarshal(data, &f); err == nil {
		err = proto.Unmarshal(f.Journal, &j)
	}
	if err != nil {
		k.log.Warn("the copy of this server's journal cannot be read and is not used", telemetry.Path, k.path, telemetry.Err, err)
		return nil, nil
	}
	if f.StoreID == k.storeID {
		return nil, nil
	}
	if f.TrustDomain != k.trustDomain {
		k.log.Warn("the copy of this server's journal is of another trust domain and is not used", telemetry.Path, k.path, telemetry.TrustDomain, f.TrustDomain)
		return nil, nil
	}
	return &j, nil
}

// adopt brings what the copy knows into a store that was restored or copied,
// before an authority is made of its journal: authorities that it has forgotten
// are published again, the one whose key is here is to sign, and what was
// tainted or revoked stays that. Only what this server itself wrote is changed.
func (k *kept) adopt(ctx context.Context, manager keys.Manager, now time.Time) error {
	had, err := k.read()
	if err != nil || had == nil {
		return err
	}
	have, err := k.registry.LoadJournal(ctx, k.serverID)
	if err != nil {
		return err
	}
	for _, r := range had.GetX509() {
		withdraw(r, recordOf(have.GetX509(), r.GetAuthorityId()))
	}
	signer, err := keyHolder(ctx, had.GetX509(), manager, now)
	if err != nil {
		return err
	}
	var known, published int
	_, j, err := k.registry.UpdateAuthorities(ctx, k.serverID, func(b *registry.Bundle, j *recordv1.Journal) error {
		known, published = len(j.GetX509()), len(b.X509Authorities)
		j.X509 = mergeX509(b, j.GetX509(), had.GetX509(), signer, now)
		mergeJWT(b, j.GetJwt(), had.GetJwt())
		published = len(b.X509Authorities) - published
		return nil
	})
	if err != nil {
		return fmt.Errorf("adopting this server's authorities: %w", err)
	}
	k.log.WarnContext(ctx, "the store was restored or copied: what this server knows of its own authorities is brought into it",
		telemetry.StoreID, k.storeID, telemetry.AuthorityID, signer, telemetry.Count, len(j.GetX509())-known, telemetry.Published, published)
	return nil
}

// keyHolder is the ID of the authority that is to sign: the active one, or the
// prepared one when that has taken its place by now, if its key is here; else
// empty.
func keyHolder(ctx context.Context, had []*recordv1.JournaledAuthority, manager keys.Manager, now time.Time) (string, error) {
	order := slices.Clone(had)
	slices.SortStableFunc(order, func(a, b *recordv1.JournaledAuthority) int { return turn(a, now) - turn(b, now) })
	for _, r := range order {
		if turn(r, now) == never {
			break
		}
		key, err := manager.Get(ctx, r.GetSlot())
		if errors.Is(err, keys.ErrNotFound) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("getting key %q: %w", r.GetSlot(), err)
		}
		public, err := x509.ParsePKIXPublicKey(r.GetPublicKey())
		if own, ok := key.Signer.Public().(interface{ Equal(crypto.PublicKey) bool }); err == nil && ok && own.Equal(public) {
			return r.GetAuthorityId(), nil
		}
	}
	return "", nil
}

const never = 3

// turn orders authorities by who is to sign first.
func turn(r *recordv1.JournaledAuthority, now time.Time) int {
	issued, end := time.Unix(r.GetIssuedAt(), 0), time.Unix(r.GetNotAfter(), 0)
	switch {
	case r.GetTainted() || r.GetRevoked() || !now.Before(end):
		return never
	case r.GetState() == recordv1.JournaledAuthority_STATE_ACTIVE && now.Before(svid.ActivateAt(issued, end)):
		return 0
	case r.GetState() == recordv1.JournaledAuthority_STATE_PREPARED:
		return 1
	case r.GetState() == recordv1.JournaledAuthority_STATE_ACTIVE:
		return 2
	}
	return never
}

// mergeX509 returns the journal of X.509 authorities, newest first, with those
// that the store's, have, has forgotten, and brings the bundle in line.
func mergeX509(b *registry.Bundle, have, had []*recordv1.JournaledAuthority, signer string, now time.Time) []*recordv1.JournaledAuthority {
	signing := recordOf(have, signer).GetState() == recordv1.JournaledAuthority_STATE_ACTIVE
	var out []*recordv1.JournaledAuthority
	for _, r := range had {
		if len(r.GetChain()) == 0 || !now.Before(time.Unix(r.GetNotAfter(), 0)) {
			continue
		}
		known := recordOf(have, r.GetAuthorityId())
		r = proto.CloneOf(r)
		withdraw(r, known)
		switch {
		case known != nil && signing && !r.GetTainted() && !r.GetRevoked():
			r.State = known.GetState()
		case r.GetAuthorityId() == signer && !r.GetTainted() && !r.GetRevoked():
			r.State = recordv1.JournaledAuthority_STATE_PREPARED
		default:
			r.State = recordv1.JournaledAuthority_STATE_OLD
		}
		out = append(out, r)
		publishX509(b, r)
	}
	for _, r := range have {
		if recordOf(out, r.GetAuthorityId()) != nil {
			continue
		}
		if r.GetState() == recordv1.JournaledAuthority_STATE_PREPARED && !signing {
			r.State = recordv1.JournaledAuthority_STATE_OLD // It may have signed since.
		}
		out = append(out, r)
	}
	return out
}

// publishX509 has the bundle say of an authority what its record says.
func publishX509(b *registry.Bundle, r *recordv1.JournaledAuthority) {
	root := r.GetChain()[len(r.GetChain())-1]
	same := func(a registry.X509Authority) bool { return bytes.Equal(a.DER, root) }
	i := slices.IndexFunc(b.X509Authorities, same)
	switch {
	case r.GetRevoked():
		b.X509Authorities = slices.DeleteFunc(b.X509Authorities, same)
	case i < 0:
		b.X509Authorities = append(b.X509Authorities, registry.X509Authority{DER: root, Tainted: r.GetTainted()})
	case r.GetTainted():
		b.X509Authorities[i].Tainted = true
	}
}

// mergeJWT withdraws from the store's JWT authorities what was withdrawn. Those
// that it has forgotten are not brought back: what they signed lives for
// minutes.
func mergeJWT(b *registry.Bundle, have, had []*recordv1.JournaledAuthority) {
	for _, r := range had {
		known := recordOf(have, r.GetAuthorityId())
		if known == nil || !r.GetTainted() && !r.GetRevoked() {
			continue
		}
		known.State = recordv1.JournaledAuthority_STATE_OLD
		withdraw(known, r)
		same := func(a registry.JWTAuthority) bool { return a.KeyID == r.GetAuthorityId() }
		if known.GetRevoked() {
			b.JWTAuthorities = slices.DeleteFunc(b.JWTAuthorities, same)
		} else if i := slices.IndexFunc(b.JWTAuthorities, same); i >= 0 {
			b.JWTAuthorities[i].Tainted = true
		}
	}
}

// withdraw has r say also what by says of trust that was withdrawn. Either the
// copy or the store may know it alone: an authority of a server that does not run
// is revoked at another one.
func withdraw(r, by *recordv1.JournaledAuthority) {
	r.Tainted = r.GetTainted() || by.GetTainted()
	r.Revoked = r.GetRevoked() || by.GetRevoked()
}

func recordOf(list []*recordv1.JournaledAuthority, id string) *recordv1.JournaledAuthority {
	for _, r := range list {
		if r.GetAuthorityId() == id {
			return r
		}
	}
	return nil
}
