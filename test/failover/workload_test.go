package failover

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// workload is a client of an agent's Workload API, which sees each of its
// X509-SVIDs.
type workload struct {
	t    *testing.T
	name string

	mu      sync.Mutex
	expires time.Time // the SVID in use
	updates int
	least   time.Duration // that was left of one when the next one came
}

// watch starts a workload at an agent; it ends with the test.
func (m *member) watch(t *testing.T) *workload {
	t.Helper()
	w := &workload{t: t, name: m.socket, least: svidTTL}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = workloadapi.WatchX509Context(ctx, w, workloadapi.WithAddr("unix://"+m.socket)) // It ends by ctx.
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return w
}

// OnX509ContextUpdate is workloadapi.X509ContextWatcher.
func (w *workload) OnX509ContextUpdate(c *workloadapi.X509Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := c.DefaultSVID().Certificates[0].NotAfter
	if next.Equal(w.expires) {
		return // The bundle has changed.
	}
	if w.updates++; w.updates > 1 {
		w.least = min(w.least, time.Until(w.expires))
	}
	w.expires = next
}

// OnX509ContextWatchError is workloadapi.X509ContextWatcher.
func (w *workload) OnX509ContextWatchError(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.updates > 0 && context.Cause(w.t.Context()) == nil {
		w.t.Logf("workload at %s: %v", w.name, err)
	}
}

// check says whether each SVID came well before the end of the one before.
func (w *workload) check() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.updates < 2 || w.least < svidTTL/5 || time.Now().After(w.expires) {
		w.t.Errorf("workload at %s: %d SVIDs, the next one came %v before the end; the last one ends in %v", w.name, w.updates, w.least, time.Until(w.expires))
	}
}
