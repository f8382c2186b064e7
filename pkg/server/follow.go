package server

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/credence-id/credence/pkg/ca"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/retry"
	"github.com/credence-id/credence/pkg/telemetry"
)

// state is what changes while a server runs, beside the tables.
type state struct {
	loaded   atomic.Bool // the first commit was applied
	stopping atomic.Bool
}

// readyWait is how long a health check waits for the index.
const readyWait = 2 * time.Second

// follow applies the store's log to everything that is a view of it. A store
// that cannot be read at the start ends the server; later it is tried again.
func (k *control) follow(ctx context.Context) error {
	var fatal error
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := retry.Forever(ctx, func(ctx context.Context) error {
		err := k.registry.Follow(ctx, k.apply)
		if err != nil && (!k.state.loaded.Load() || errors.Is(err, errReplaced)) {
			fatal = err
			cancel()
		}
		k.fresh.follows(false)
		return err
	}, func(err error, pause time.Duration) {
		k.log.ErrorContext(ctx, "the store cannot be followed, what is served may be old", telemetry.Err, err, telemetry.Retry, pause)
		k.health.Changed()
	})
	if fatal != nil {
		return fatal
	}
	return err
}

// apply brings every view to the commit's revision. The index comes after all
// that is read by who waits for it, so that what it has reached, they have; the
// feed comes last, because it reads them all.
func (k *control) apply(c *registry.Commit) error {
	begin := time.Now()
	if c.Reset && k.state.loaded.Load() {
		if id, rev, _ := k.index.Position(); c.StoreID != id || c.Revision < rev {
			return errReplaced
		}
	}
	touched := k.graph.Apply(c)
	k.agents.Apply(c)
	k.applyBundles(c, begin)
	k.index.Apply(c)
	k.hub.Publish(c, touched)
	k.fresh.follows(true)
	if c.Reset {
		k.log.Info("store is loaded", telemetry.Revision, uint64(c.Revision), telemetry.Count, len(c.Entries),
			telemetry.Elapsed, time.Since(begin))
	}
	if !k.state.loaded.Swap(true) {
		k.health.Changed()
	}
	if c.Reset {
		// Reading a large store leaves as much garbage as it leaves tables, and
		// an idle server would keep it for hours.
		debug.FreeOSMemory()
	}
	return nil
}

// applyBundles tells those who depend on this trust domain's own bundle.
func (k *control) applyBundles(c *registry.Commit, now time.Time) {
	own := c.Reset // A whole content without the bundle says that it is gone.
	var bundle *registry.Bundle
	for _, ch := range c.Bundles {
		if ch.TrustDomain == k.roots.td {
			own, bundle = true, ch.Now
		}
	}
	if !own {
		return
	}
	k.authority.ObserveBundle(bundle)
	if k.kept != nil {
		k.kept.note()
	}
	if err := k.roots.set(bundle); err != nil {
		k.log.Error("the trust bundle has an authority that cannot be used", telemetry.Err, err)
	}
	k.svid.observe(k.roots, now)
	k.publisher.Changed()
}

// staleChanged is told when this server's view of the store becomes too old to
// act on, and when it is not any more.
func (k *control) staleChanged(stale bool) {
	if stale {
		if err := k.fresh.trusted(time.Now()); err != nil {
			k.hub.EndAll(err)
		}
	}
	k.health.Changed()
}

// live says whether the process should be left alone. What keeps it from
// serving passes by itself or ends it.
func (k *control) live(context.Context) error { return nil }

// ready says whether the server can do its work now: the store is read and can
// be, the authorities can sign, the server can show who it is.
func (k *control) ready(ctx context.Context) error {
	if k.state.stopping.Load() {
		return errors.New("the server is stopping")
	}
	if k.hub.Draining() {
		return errors.New("the server is being drained")
	}
	if !k.state.loaded.Load() {
		return errors.New("the store is being read")
	}
	waiting, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	if err := k.fresh.wait(waiting); err != nil {
		return fmt.Errorf("cut off from the store: %w", err)
	}
	now := time.Now()
	if !signs(k.authority.X509().State(), now) {
		return errors.New("no X.509 authority can sign")
	}
	if !k.settings.DisableJWTSVIDs && !signs(k.authority.JWT().State(), now) {
		return errors.New("no JWT authority can sign")
	}
	if cert := k.svid.cert.Load(); cert == nil || !now.Before(cert.Leaf.NotAfter) {
		return errors.New("the server's own X509-SVID has expired")
	}
	return nil
}

// signs says whether one of the authorities is active, with its key.
func signs(authorities []ca.View, now time.Time) bool {
	for _, a := range authorities {
		if a.State == "active" && a.HasKey && now.Before(a.NotAfter) {
			return true
		}
	}
	return false
}
