package ca

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/telemetry"
)

// Attributes of logs.
const (
	keyErr       = telemetry.Err
	keyRetry     = telemetry.Retry
	keyKind      = telemetry.AuthKind
	keyAuthority = telemetry.AuthorityID
	keySlot      = telemetry.Slot
	keyNotAfter  = telemetry.NotAfter
	keyServer    = telemetry.ServerID
	keyConfig    = telemetry.Key
	keyTTL       = telemetry.TTL
	keyReason    = telemetry.Reason
	keyManager   = "key_manager"
	keyCATTL     = "ca_ttl"
	// keyOutstanding is how many unexpired SVIDs are known; keyDropped how many
	// issued ones were not kept count of.
	keyOutstanding = "unexpired_svids"
	keyDropped     = "uncounted_svids"
)

// ErrNotReady is returned by the issuing methods while there is no authority
// that may sign: before Start, when it expired, or when its public half is not
// in the bundle. It passes by itself; the caller may try again.
var ErrNotReady = errors.New("authority is not ready")

// Authority signs X509-SVIDs and JWT-SVIDs for one server. All its methods may
// be called concurrently.
type Authority struct {
	cfg     *Config
	x509    *rotor
	jwt     *rotor
	issued  *index
	metrics *metrics
	running atomic.Bool
}

// New makes an authority that is not ready yet; it reads and writes nothing.
func New(cfg Config) (*Authority, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	a := &Authority{cfg: &cfg, issued: newIndex(cfg.MaxIssued)}
	a.x509 = newRotor(x509Family{&cfg}, &cfg)
	a.jwt = newRotor(jwtFamily{&cfg}, &cfg)
	a.jwt.off = cfg.DisableJWT
	a.metrics = newMetrics(a)
	if err := a.metrics.register(cfg.Registerer); err != nil {
		return nil, err
	}
	cfg.warn()
	if !cfg.Keys.Durable() {
		cfg.Logger.Warn("authority: keys are kept in memory, so every restart of this server makes new ones", telemetry.Name, cfg.Keys.Name())
	}
	return a, nil
}

// Start loads the authorities, or makes them, so that issuing works when it
// returns. What has expired, and what was left half done by a crash, is
// replaced or finished (S28).
func (a *Authority) Start(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx) // side by side, to share disk writes
	for _, r := range []*rotor{a.x509, a.jwt} {
		g.Go(func() error {
			_, err := r.settle(ctx)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("starting the authority: %w", err)
	}
	return nil
}

// Run rotates the authorities on time until ctx ends, and returns ctx's error.
// Errors of the store or the key manager are logged and tried again.
func (a *Authority) Run(ctx context.Context) error {
	if a.running.Swap(true) {
		return errors.New("the authority is running already")
	}
	defer a.running.Store(false)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.x509.run(ctx) })
	g.Go(func() error { return a.jwt.run(ctx) })
	g.Go(func() error { return a.issued.run(ctx) })
	return g.Wait()
}

// ObserveBundle tells the authority of the trust domain's bundle as of a
// commit; nil means that it was removed. An authority that is missing in it
// stops signing and publishes itself again (S30). Older bundles than the newest
// seen are ignored.
func (a *Authority) ObserveBundle(b *registry.Bundle) {
	a.x509.observe(b)
	a.jwt.observe(b)
}
