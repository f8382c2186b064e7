package server

import (
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/connlimit"
)

// callersBytes is how many bytes of unfinished messages all connections with one
// SPIFFE ID may have together. Every workload of the trust domain can connect,
// and gRPC reads a call's message before anyone asks whether it may call.
const callersBytes = 128 << 20

// callerBudgets are what connections with one SPIFFE ID share.
type callerBudgets struct {
	mu   sync.Mutex
	byID map[spiffeid.ID]*callerBudget
}

type callerBudget struct {
	*connlimit.Budget
	conns int // guarded by callerBudgets.mu
}

// enter returns the budget of a connection, of size bytes, and what to call at
// the connection's end.
func (c *callerBudgets) enter(id spiffeid.ID, size int, now time.Time) (b *connlimit.Budget, leave func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	shared := c.byID[id]
	if shared == nil {
		if c.byID == nil {
			c.byID = make(map[spiffeid.ID]*callerBudget)
		}
		shared = &callerBudget{Budget: connlimit.NewBudget(callersBytes, nil, now)}
		c.byID[id] = shared
	}
	shared.conns++
	b = connlimit.NewBudget(size, shared.Budget, now)
	return b, sync.OnceFunc(func() {
		b.Close()
		c.mu.Lock()
		defer c.mu.Unlock()
		if shared.conns--; shared.conns == 0 {
			delete(c.byID, id)
		}
	})
}

// budgeted is a place in a pool, and a part of a budget, of one connection.
type budgeted struct {
	place interface{ Leave() }
	leave func()
}

// Leave gives both back.
func (b budgeted) Leave() {
	b.place.Leave()
	b.leave()
}
