package fleet

import (
	"context"
	"sync"
	"time"
)

// Probe is one change on its way to agents.
type Probe struct {
	begun time.Time
	want  int
	done  chan struct{} // closed when want agents have it

	mu   sync.Mutex
	took []time.Duration // guarded by mu
}

// Expect has the next change of the entry looked out for, its removal too. It
// begins at once, so it is called just before the request is sent. want is how
// many agents the change is for; Forget ends it.
func (f *Fleet) Expect(entryID string, want int) *Probe {
	p := &Probe{begun: time.Now(), want: want, done: make(chan struct{}), took: make([]time.Duration, 0, want)}
	f.table.expect(entryID, p)
	return p
}

// Forget ends the look-out for the entry.
func (f *Fleet) Forget(entryID string) { f.table.expect(entryID, nil) }

// seen is called for each agent that has applied the change. A nil Probe takes
// no interest.
func (p *Probe) seen() {
	if p == nil {
		return
	}
	took := time.Since(p.begun)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.took) == p.want {
		return
	}
	p.took = append(p.took, took)
	if len(p.took) == p.want {
		close(p.done)
	}
}

// Wait returns when all agents have the change, or the context's error.
func (p *Probe) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Took is how long it was until each of the agents that have the change had it,
// in the order in which they did.
func (p *Probe) Took() []time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]time.Duration(nil), p.took...)
}
