package ca

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/registry"
	recordv1 "github.com/credence-id/credence/proto/record/v1"
)

// Defaults of Config, SPIRE's.
const (
	DefaultCATTL       = 24 * time.Hour
	DefaultX509SVIDTTL = time.Hour
	DefaultJWTSVIDTTL  = 5 * time.Minute
)

// minTTL is the least life of anything: below it the second's resolution of
// certificates and tokens gets in the way.
const minTTL = time.Second

// minCATTL leaves whole seconds between the steps of a rotation.
const minCATTL = 10 * time.Second

// Registry is the part of [registry.Registry] that an authority uses.
type Registry interface {
	// UpdateAuthorities changes the trust domain's bundle and one server's
	// journal in one store update. fn may run again; an error of it is
	// returned and nothing is written.
	UpdateAuthorities(ctx context.Context, serverID string, fn func(*registry.Bundle, *recordv1.Journal) error) (*registry.Bundle, *recordv1.Journal, error)
	// LoadJournal reads a server's journal from the store; an empty one when
	// there is none.
	LoadJournal(ctx context.Context, serverID string) (*recordv1.Journal, error)
	// FindJournal returns the ID of the server whose journal match says yes
	// to, or "".
	FindJournal(ctx context.Context, match func(*recordv1.Journal) bool) (serverID string, err error)
	// UpdateGoneAuthorities is UpdateAuthorities for another server, or
	// registry.ErrRunning while that one runs.
	UpdateGoneAuthorities(ctx context.Context, serverID string, fn func(*registry.Bundle, *recordv1.Journal) error) error
	// LoadBundle reads a bundle from the store, not from the index. It returns
	// registry.ErrNotFound when there is none.
	LoadBundle(ctx context.Context, td spiffeid.TrustDomain) (*registry.Bundle, error)
}

// Config of an Authority.
type Config struct {
	// TrustDomain, ServerID, Registry and Keys are required. ServerID is this
	// server's own: no other process may use it.
	TrustDomain spiffeid.TrustDomain
	ServerID    string
	Registry    Registry
	Keys        keys.Manager

	// CATTL is ca_ttl, the life of an authority (default 24h).
	CATTL time.Duration
	// X509SVIDTTL is default_x509_svid_ttl (default 1h).
	X509SVIDTTL time.Duration
	// JWTSVIDTTL is default_jwt_svid_ttl (default 5m).
	JWTSVIDTTL time.Duration
	// AgentTTL is agent_ttl (default: X509SVIDTTL).
	AgentTTL time.Duration
	// CAKeyType is ca_key_type (default ec-p256).
	CAKeyType keys.Type
	// JWTKeyType is jwt_key_type (default: CAKeyType).
	JWTKeyType keys.Type
	// JWTIssuer is jwt_issuer, the claim iss (default: none).
	JWTIssuer string
	// DisableJWT is disable_jwt_svids: there is no JWT authority, and those of
	// earlier runs are wound down (default: false).
	DisableJWT bool
	// CASubject is ca_subject (default C=US, O=SPIFFE).
	CASubject pkix.Name

	// OnIssue, when set, is told of everything issued, before the caller gets
	// it. It is called concurrently, on the path of the request, and must not
	// block.
	OnIssue func(Issued)
	// MaxIssued bounds the index of unexpired SVIDs (default 65536).
	MaxIssued int
	// Logger (default: none).
	Logger *slog.Logger
	// Registerer receives the authority's metrics (default: none).
	Registerer prometheus.Registerer
}

func (c Config) withDefaults() Config {
	setDefault(&c.CATTL, DefaultCATTL)
	setDefault(&c.X509SVIDTTL, DefaultX509SVIDTTL)
	setDefault(&c.JWTSVIDTTL, DefaultJWTSVIDTTL)
	setDefault(&c.AgentTTL, c.X509SVIDTTL)
	setDefault(&c.CAKeyType, keys.ECP256)
	setDefault(&c.JWTKeyType, c.CAKeyType)
	setDefault(&c.MaxIssued, 1<<16)
	if c.CASubject.String() == "" {
		c.CASubject = pkix.Name{Country: []string{"US"}, Organization: []string{"SPIFFE"}}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate names the key of the configuration file that cannot be used.
func (c Config) Validate() error {
	switch {
	case c.TrustDomain.IsZero():
		return errors.New("trust_domain is not set")
	case c.ServerID == "":
		return errors.New("the authority has no server ID")
	case c.Registry == nil || c.Keys == nil:
		return errors.New("the authority has no registry or no key manager")
	case c.MaxIssued < 0:
		return fmt.Errorf("the index of issued SVIDs cannot hold %d", c.MaxIssued)
	}
	for _, f := range []struct {
		key      string
		ttl, min time.Duration
	}{
		{"ca_ttl", c.CATTL, minCATTL},
		{"default_x509_svid_ttl", c.X509SVIDTTL, minTTL},
		{"default_jwt_svid_ttl", c.JWTSVIDTTL, minTTL},
		{"agent_ttl", c.AgentTTL, minTTL},
	} {
		if f.ttl != 0 && f.ttl < f.min {
			return fmt.Errorf("%s: %s is shorter than %s", f.key, f.ttl, f.min)
		}
	}
	return nil
}

// required is how much life an X.509 authority must have left to be activated,
// and keeps until its successor is (S29): the longest of the default TTLs, but
// never so much that no authority of this ca_ttl could be rotated in time.
func (c Config) required() time.Duration { return min(max(c.X509SVIDTTL, c.AgentTTL), c.CATTL/3) }

// requiredJWT is required, for the JWT authority.
func (c Config) requiredJWT() time.Duration { return min(c.JWTSVIDTTL, c.CATTL/3) }

// warn says at start which TTLs cannot be held.
func (c Config) warn() {
	for _, f := range []struct {
		key string
		ttl time.Duration
	}{
		{"default_x509_svid_ttl", c.X509SVIDTTL},
		{"agent_ttl", c.AgentTTL},
		{"default_jwt_svid_ttl", c.JWTSVIDTTL},
	} {
		if f.ttl > c.CATTL/3 {
			c.Logger.Warn("TTL is long for the authority's, some SVIDs will live shorter: lower it to a third of ca_ttl, or raise ca_ttl",
				keyConfig, f.key, keyTTL, f.ttl, keyCATTL, c.CATTL)
		}
	}
}
