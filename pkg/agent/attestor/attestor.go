package attestor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/workload"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

const defaultTimeout = 5 * time.Second

// Config of a Runner.
type Config struct {
	// Attestors are asked side by side; their names are unique.
	Attestors []workload.Attestor
	// Timeout bounds each attestor's work on one process; default 5 s.
	Timeout time.Duration
	// Log defaults to nowhere.
	Log *slog.Logger
	// Metrics is where the runner registers its metrics; nil: nowhere.
	Metrics prometheus.Registerer
}

// Runner asks attestors. Its methods may be called concurrently.
type Runner struct {
	cfg     Config
	metrics []each // of each attestor
	// merging has the goroutines of Answer.Invalidated.
	merging sync.WaitGroup
}

// New returns a Runner; it starts nothing.
func New(cfg Config) (*Runner, error) {
	cfg.Timeout = cmp.Or(cfg.Timeout, defaultTimeout)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	r, m := &Runner{cfg: cfg}, newMetrics()
	if err := m.register(cfg.Metrics); err != nil {
		return nil, fmt.Errorf("registering the attestors' metrics: %w", err)
	}
	for _, a := range cfg.Attestors {
		r.metrics = append(r.metrics, m.of(a.Name()))
	}
	return r, nil
}

// answer is one attestor's.
type answer struct {
	selectors   attest.Selectors
	invalidated <-chan struct{}
}

// Attest returns the selectors of a process. The channel, when not nil, is
// closed when they may have changed since; it stops being of use when ctx ends.
// An attestor that fails is reported and left out; the error is ctx's alone.
func (r *Runner) Attest(ctx context.Context, p workload.Process) (attest.Selectors, <-chan struct{}, error) {
	answers := make([]answer, len(r.cfg.Attestors))
	if last := len(answers) - 1; last >= 0 {
		var others sync.WaitGroup
		for i := range last {
			others.Go(func() { answers[i] = r.ask(ctx, i, p) })
		}
		answers[last] = r.ask(ctx, last, p)
		others.Wait()
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if len(answers) == 1 {
		return attest.NewSelectors(answers[0].selectors...), answers[0].invalidated, nil
	}
	var all attest.Selectors
	var channels []<-chan struct{}
	for _, a := range answers {
		all = append(all, a.selectors...)
		if a.invalidated != nil {
			channels = append(channels, a.invalidated)
		}
	}
	return attest.NewSelectors(all...), r.merge(ctx, channels), nil
}

// Run does the work of those attestors that have some (workload.Runner), until ctx
// ends or one of them cannot go on.
func (r *Runner) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, a := range r.cfg.Attestors {
		if a, ok := a.(workload.Runner); ok {
			g.Go(func() error {
				if err := a.Run(ctx); err != nil {
					return fmt.Errorf("attestor %s: %w", a.Name(), err)
				}
				return nil
			})
		}
	}
	return g.Wait()
}

// Wait returns when nothing that Attest started runs any more: soon after the
// contexts given to it have ended.
func (r *Runner) Wait() { r.merging.Wait() }

// ask asks the attestor at i.
func (r *Runner) ask(ctx context.Context, i int, p workload.Process) answer {
	a, start := r.cfg.Attestors[i], time.Now()
	bounded := withDeadline(ctx, start.Add(r.cfg.Timeout))
	defer bounded.stop()
	selectors, invalidated, err := a.Attest(bounded, p)
	if err == nil {
		err = check(a.Name(), selectors)
	}
	elapsed := time.Since(start)
	r.metrics[i].seconds.Observe(elapsed.Seconds())
	if err == nil {
		return answer{selectors, invalidated}
	}
	r.metrics[i].failures.Inc()
	level := slog.LevelWarn
	if ctx.Err() != nil || errors.Is(err, fs.ErrNotExist) {
		level = slog.LevelDebug // the workload went away
	}
	r.cfg.Log.Log(ctx, level, "a workload attestor could not tell about a process, the others are used",
		telemetry.Attestor, a.Name(), telemetry.PeerPID, p.PID(), telemetry.Elapsed, elapsed, telemetry.Err, err)
	return answer{}
}

// check refuses what an attestor must not say. The error quotes no value.
func check(name string, selectors attest.Selectors) error {
	for _, s := range selectors {
		if s.Type != name {
			return fmt.Errorf("it gave a selector of type %q, which is not its name", s.Type)
		}
	}
	return selectors.Validate()
}

// merge returns a channel that is closed when one of the channels is, until ctx
// ends.
func (r *Runner) merge(ctx context.Context, channels []<-chan struct{}) <-chan struct{} {
	switch len(channels) {
	case 0:
		return nil
	case 1:
		return channels[0]
	}
	merged := make(chan struct{})
	var once sync.Once
	for _, ch := range channels {
		r.merging.Go(func() {
			select {
			case <-ch:
				once.Do(func() { close(merged) })
			case <-merged:
			case <-ctx.Done():
			}
		})
	}
	return merged
}
