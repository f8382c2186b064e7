package registry

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/store"
)

// Tables: a prefix of the store's keys each.
const (
	tableEntry   = "e/" // entry ID → record Entry
	tableUnique  = "u/" // 16-byte hash of parent, SPIFFE ID, selectors → entry ID
	tableAgent   = "a/" // SPIFFE ID path, without its first slash → record Agent
	tableToken   = "t/" // SHA-256 of the token → record JoinToken
	tableBundle  = "b/" // trust domain name → record Bundle
	tableRelated = "r/" // trust domain name → record FederationRelationship
	tableJournal = "j/" // server ID → record Journal
	tableExpiry  = "x/" // Unix seconds (8 bytes, big endian), kind, key → present
	tableMeta    = "m/"

	keyTrustDomain = tableMeta + "trust_domain"
	keyDissolving  = tableMeta + "dissolving" // see DeleteBundle
)

// Kinds in the table of expiries.
const (
	expiresEntry = 'e'
	expiresToken = 't'
)

func entryKey(id string) string { return tableEntry + id }

// uniqueKey is the same for two entries exactly when SPIRE calls them similar.
// Each text is preceded by its length, so that no two tuples read alike.
func uniqueKey(e *Entry) string {
	h := sha256.New()
	var buf []byte
	add := func(s string) {
		buf = binary.AppendUvarint(buf[:0], uint64(len(s)))
		h.Write(append(buf, s...))
	}
	add(e.ParentID.String())
	add(e.SPIFFEID.String())
	for _, s := range e.Selectors {
		add(s.Type)
		add(s.Value)
	}
	return tableUnique + string(h.Sum(nil)[:16])
}

func agentKey(id spiffeid.ID) string {
	return tableAgent + strings.TrimPrefix(id.Path(), "/")
}

func agentIDOf(td spiffeid.TrustDomain, key string) (spiffeid.ID, error) {
	id, err := spiffeid.FromPath(td, "/"+strings.TrimPrefix(key, tableAgent))
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("agent key %q: %w", key, err)
	}
	return id, nil
}

func tokenKey(token string) string {
	sum := sha256.Sum256([]byte(token))
	return tableToken + string(sum[:])
}

func bundleKey(td spiffeid.TrustDomain) string { return tableBundle + td.Name() }

func bundleDomainOf(key string) (spiffeid.TrustDomain, error) {
	return domainOf("bundle", tableBundle, key)
}

func relationshipKey(td spiffeid.TrustDomain) string { return tableRelated + td.Name() }

func relationshipDomainOf(key string) (spiffeid.TrustDomain, error) {
	return domainOf("federation relationship", tableRelated, key)
}

func domainOf(noun, table, key string) (spiffeid.TrustDomain, error) {
	td, err := spiffeid.TrustDomainFromString(strings.TrimPrefix(key, table))
	if err != nil {
		return spiffeid.TrustDomain{}, fmt.Errorf("%s key %q: %w", noun, key, err)
	}
	return td, nil
}

func journalKey(serverID string) string { return tableJournal + serverID }

// expiryKey puts what expires in order of time. The first key of the table is
// therefore what expires next.
func expiryKey(at time.Time, kind byte, key string) string {
	buf := binary.BigEndian.AppendUint64([]byte(tableExpiry), uint64(at.Unix()))
	return string(buf) + string(kind) + key
}

// expiry is an expiryKey taken apart.
type expiry struct {
	at   time.Time
	kind byte
	key  string // entry ID, or SHA-256 of the token
}

func parseExpiry(kv store.KV) (expiry, error) {
	rest := strings.TrimPrefix(kv.Key, tableExpiry)
	if len(rest) < 10 {
		return expiry{}, fmt.Errorf("expiry key %q is too short", kv.Key)
	}
	seconds := binary.BigEndian.Uint64([]byte(rest[:8]))
	return expiry{at: time.Unix(int64(seconds), 0).UTC(), kind: rest[8], key: rest[9:]}, nil
}
