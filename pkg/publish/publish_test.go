package publish

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/retry"
	"github.com/credence-id/credence/pkg/store"
)

// place is a Watcher in memory.
type place struct {
	mu sync.Mutex
	// The rest is guarded by mu.
	got     []store.Revision
	failing error
	slow    time.Duration

	tell chan func(changed func()) error
}

func (p *place) Write(_ context.Context, b *registry.Bundle) error {
	p.mu.Lock()
	slow, err := p.slow, p.failing
	p.mu.Unlock()
	time.Sleep(slow)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.got = append(p.got, b.ModRevision)
	}
	return err
}

func (p *place) Watch(ctx context.Context, changed func()) error {
	for {
		select {
		case do := <-p.tell:
			if err := do(changed); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *place) set(failing error, slow time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failing, p.slow = failing, slow
}

// source is the bundle as the store has it.
type source struct {
	mu       sync.Mutex
	revision store.Revision // 0: there is none; guarded by mu
	failing  error          // guarded by mu
}

func (s *source) bundle(context.Context) (*registry.Bundle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.revision == 0 || s.failing != nil {
		return nil, s.failing
	}
	return &registry.Bundle{ModRevision: s.revision}, nil
}

func (s *source) set(r store.Revision, failing error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision, s.failing = r, failing
}

// publishing runs a publisher with one place.
func publishing(t *testing.T, test func(t *testing.T, p *Publisher, at *place, from *source, log *strings.Builder)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		at, from, log := &place{tell: make(chan func(func()) error)}, &source{revision: 1}, &strings.Builder{}
		p, err := New(Config{
			Targets: []Target{{Plugin: "test", Name: "here", Writer: at}}, Bundle: from.bundle,
			Logger: slog.New(slog.NewTextHandler(log, nil)), Registerer: prometheus.NewRegistry(),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		synctest.Wait()
		test(t, p, at, from, log)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
}

// wantWritten wants these revisions since the last call.
func (p *place) wantWritten(t *testing.T, want ...store.Revision) {
	t.Helper()
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	if diff := cmp.Diff(want, p.got); diff != "" {
		t.Errorf("written (-want +got):\n%s", diff)
	}
	p.got = nil
}

// TestPublishes at the start and after each change, without any timer.
func TestPublishes(t *testing.T) {
	t.Parallel()
	publishing(t, func(t *testing.T, p *Publisher, at *place, from *source, log *strings.Builder) {
		at.wantWritten(t, 1)
		from.set(2, nil)
		p.Changed()
		at.wantWritten(t, 2)
		time.Sleep(24 * time.Hour)
		at.wantWritten(t)
		at.tell <- func(changed func()) error { changed(); return nil }
		at.wantWritten(t, 2) // somebody else has changed the place
		if n := strings.Count(log.String(), "is published"); n != 2 {
			t.Errorf("the log has %d lines of it, want one for each bundle:\n%s", n, log)
		}
	})
}

// TestCoalesces: changes that come while one is written are written together.
func TestCoalesces(t *testing.T) {
	t.Parallel()
	publishing(t, func(t *testing.T, p *Publisher, at *place, from *source, _ *strings.Builder) {
		at.wantWritten(t, 1)
		at.set(nil, time.Second)
		for r := range store.Revision(10) {
			from.set(2+r, nil)
			p.Changed()
			synctest.Wait()
		}
		time.Sleep(time.Minute)
		at.wantWritten(t, 2, 11)
	})
}

// TestRetries: a failure is logged, seen by a health check, and tried again, at
// once when the bundle changes.
func TestRetries(t *testing.T) {
	t.Parallel()
	publishing(t, func(t *testing.T, p *Publisher, at *place, from *source, log *strings.Builder) {
		at.wantWritten(t, 1)
		at.set(errors.New("cannot patch configmaps"), 0)
		from.set(2, nil)
		p.Changed()
		at.wantWritten(t)
		if err := p.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "test here: cannot patch configmaps") {
			t.Errorf("Check: %v", err)
		}
		if !strings.Contains(log.String(), "cannot patch configmaps") {
			t.Errorf("the log does not say why:\n%s", log)
		}
		at.set(nil, 0)
		time.Sleep(2 * retry.Least)
		at.wantWritten(t, 2)
		if err := p.Check(t.Context()); err != nil {
			t.Errorf("Check: %v", err)
		}
		// However long it has failed, a change is tried at once.
		at.set(errors.New("no route"), 0)
		p.Changed()
		time.Sleep(time.Hour)
		at.set(nil, 0)
		from.set(3, nil)
		p.Changed()
		at.wantWritten(t, 3)
	})
}

// TestCutOff: a server that cannot know the bundle writes nothing; one that has
// none waits for it.
func TestCutOff(t *testing.T) {
	t.Parallel()
	publishing(t, func(t *testing.T, p *Publisher, at *place, from *source, _ *strings.Builder) {
		at.wantWritten(t, 1)
		from.set(1, errors.New("cut off from the store"))
		p.Changed()
		at.wantWritten(t)
		from.set(0, nil)
		time.Sleep(time.Hour)
		at.wantWritten(t)
		from.set(2, nil)
		p.Changed()
		at.wantWritten(t, 2)
	})
}

// TestWatchBreaks: it is begun again.
func TestWatchBreaks(t *testing.T) {
	t.Parallel()
	publishing(t, func(t *testing.T, _ *Publisher, at *place, _ *source, log *strings.Builder) {
		at.wantWritten(t, 1)
		at.tell <- func(func()) error { return errors.New("reset by peer") }
		at.tell <- func(changed func()) error { changed(); return nil }
		at.wantWritten(t, 1)
		if !strings.Contains(log.String(), "reset by peer") {
			t.Errorf("the log does not say why:\n%s", log)
		}
	})
}

// TestNothingToPublish: without targets there is nothing to run or to watch.
func TestNothingToPublish(t *testing.T) {
	t.Parallel()
	p, err := New(Config{Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	p.Changed()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
}
