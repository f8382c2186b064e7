package publish

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/retry"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/telemetry"
)

// writeTimeout bounds one attempt.
const writeTimeout = 30 * time.Second

// Writer writes the bundle to one place.
//
// Write is called by one goroutine at a time. It may find there what it would
// write, and the bundle is not changed by it. An error says what to do about it.
type Writer interface {
	Write(ctx context.Context, b *registry.Bundle) error
}

// Watcher is a Writer that can see that its place was changed. Watch calls
// changed, which returns at once, whenever the bundle may have to be written
// again, until ctx ends or the watch breaks; it is then called again.
type Watcher interface {
	Writer
	Watch(ctx context.Context, changed func()) error
}

// Target is one place that is kept current.
type Target struct {
	// Plugin is the configured name, such as k8s_configmap, and Name which of
	// its places this is.
	Plugin, Name string
	Writer       Writer
}

// Config of a Publisher. All fields are required.
type Config struct {
	Targets []Target
	// Bundle is the trust domain's bundle as the store has it; nil if there is
	// none yet. It fails when that cannot be known at the moment.
	Bundle     func(context.Context) (*registry.Bundle, error)
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Publisher keeps targets current.
type Publisher struct {
	cfg     Config
	targets []*target
}

// target is the work for one.
type target struct {
	Target

	bundle func(context.Context) (*registry.Bundle, error)
	log    *slog.Logger
	writes *prometheus.CounterVec
	wake   chan struct{} // has room for one

	mu      sync.Mutex
	failed  error          // of the last attempt; guarded by mu
	written store.Revision // of the bundle that is there; guarded by mu
}

// New returns a publisher. It starts nothing.
func New(cfg Config) (*Publisher, error) {
	p := &Publisher{cfg: cfg}
	writes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "credence_publish_writes_total",
		Help: "Attempts to write the trust bundle to a target, by outcome: done or failed.",
	}, []string{"plugin", "target", "outcome"})
	for _, t := range cfg.Targets {
		p.targets = append(p.targets, &target{
			Target: t, bundle: cfg.Bundle, writes: writes, wake: make(chan struct{}, 1),
			log: cfg.Logger.With(telemetry.Plugin, t.Plugin, telemetry.Target, t.Name),
		})
	}
	if len(p.targets) == 0 {
		return p, nil
	}
	current := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "credence_publish_failing_targets",
		Help: "Targets whose last attempt to write the trust bundle failed.",
	}, func() float64 { return float64(len(p.failing())) })
	return p, errors.Join(cfg.Registerer.Register(writes), cfg.Registerer.Register(current))
}

// Changed tells that the bundle has changed. It returns at once.
func (p *Publisher) Changed() {
	for _, t := range p.targets {
		t.poke()
	}
}

// Targets is how many there are.
func (p *Publisher) Targets() int { return len(p.targets) }

// Check says which targets do not have the bundle, and why.
func (p *Publisher) Check(context.Context) error { return errors.Join(p.failing()...) }

func (p *Publisher) failing() []error {
	var out []error
	for _, t := range p.targets {
		t.mu.Lock()
		if t.failed != nil {
			out = append(out, fmt.Errorf("%s %s: %w", t.Plugin, t.Name, t.failed))
		}
		t.mu.Unlock()
	}
	return out
}

// Run writes until ctx ends, and returns its error.
func (p *Publisher) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, t := range p.targets {
		g.Go(func() error { return t.keep(ctx) })
		if w, ok := t.Writer.(Watcher); ok {
			g.Go(func() error { return t.watch(ctx, w) })
		}
	}
	if len(p.targets) == 0 {
		<-ctx.Done()
	}
	return errors.Join(g.Wait(), ctx.Err())
}

func (t *target) poke() {
	select {
	case t.wake <- struct{}{}:
	default: // It will be looked at anyway.
	}
}

// keep writes at the begin, when it is woken, and again after a failure.
func (t *target) keep(ctx context.Context) error {
	pauses := retry.Pauses()
	for {
		var later <-chan time.Time
		var timer *time.Timer
		if err := t.write(ctx); err != nil && ctx.Err() == nil {
			pause := pauses.NextBackOff()
			t.log.ErrorContext(ctx, "the trust bundle cannot be published now", telemetry.Err, err, telemetry.Retry, pause)
			timer = time.NewTimer(pause)
			later = timer.C
		} else {
			pauses.Reset()
		}
		select {
		case <-ctx.Done():
		case <-t.wake:
		case <-later:
		}
		if timer != nil {
			timer.Stop()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// write writes the bundle as it is now.
func (t *target) write(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	b, err := t.bundle(ctx)
	if err == nil && b != nil {
		err = t.Writer.Write(ctx, b)
	}
	outcome := "done"
	if err != nil {
		outcome = "failed"
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed = err
	if err == nil && b == nil {
		return nil // There will be one, and Changed tells.
	}
	t.writes.WithLabelValues(t.Plugin, t.Name, outcome).Inc()
	if err == nil && t.written != b.ModRevision {
		t.written = b.ModRevision
		t.log.InfoContext(ctx, "the trust bundle is published", telemetry.Revision, uint64(b.ModRevision))
	}
	return err
}

// watch has the bundle written again where somebody else has changed the place.
func (t *target) watch(ctx context.Context, w Watcher) error {
	return retry.Forever(ctx, func(ctx context.Context) error { return w.Watch(ctx, t.poke) }, func(err error, pause time.Duration) {
		t.log.WarnContext(ctx, "what the trust bundle is published to cannot be watched now", telemetry.Err, err, telemetry.Retry, pause)
	})
}
