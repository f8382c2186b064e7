package connlimit

import (
	"fmt"
	"net"
	"sync/atomic"
	"time"
)

const (
	// allowance is what a finished message is credited with beyond its own
	// size: headers and frames.
	allowance = 1 << 10
	// forgiven is how many bytes are forgotten a second, such as pings and the
	// calls that were given up.
	forgiven = 64 << 10
)

// Budget bounds what the other end of a connection has sent and nobody has
// taken: messages that were begun and not ended. gRPC holds them for as long as
// the client pleases, one on each stream. One goroutine reads, any may credit.
type Budget struct {
	size int64
	used atomic.Int64
	last time.Time // when the reader last forgave
}

// NewBudget returns a Budget of size bytes.
func NewBudget(size int, now time.Time) *Budget {
	return &Budget{size: int64(size), last: now}
}

// Took tells that a message of n bytes has come whole. A nil Budget is no limit.
func (b *Budget) Took(n int) {
	if b == nil {
		return
	}
	b.less(int64(n) + allowance)
}

// less never leaves a credit: what was taken says nothing about what comes.
func (b *Budget) less(n int64) {
	for {
		used := b.used.Load()
		if b.used.CompareAndSwap(used, max(0, used-n)) {
			return
		}
	}
}

// read counts n bytes and says whether they are within the budget.
func (b *Budget) read(n int) bool {
	if b.used.Add(int64(n)) <= b.size {
		return true
	}
	now := time.Now()
	b.less(int64(min(now.Sub(b.last).Seconds(), 1<<20) * forgiven))
	b.last = now
	return b.used.Load() <= b.size
}

// Conn is a connection whose reader stops at its Budget.
type Conn struct {
	net.Conn
	Budget *Budget
}

// Read ends the connection when the other end has sent too much.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == nil && !c.Budget.read(n) {
		return 0, fmt.Errorf("the client has more than %d bytes of unfinished messages on one connection", c.Budget.size)
	}
	return n, err
}
