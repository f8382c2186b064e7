package server

import (
	"net"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/connlimit"
)

// endless is a connection that sends one DATA frame after another.
type endless struct {
	net.Conn
	sent int
}

func (c *endless) Read(p []byte) (int, error) {
	const preface, header, payload = 24, 9, 1<<24 - 1
	for i := range p {
		p[i] = 0
		if at := (c.sent + i - preface) % (header + payload); c.sent+i >= preface && at < 3 {
			p[i] = 0xff // the length
		}
	}
	c.sent += len(p)
	return len(p), nil
}

// S07: a workload without any right can connect, and have many connections. What
// they make the server hold is bounded for all of them together.
func TestS07_ConnectionsOfOneCallerShare(t *testing.T) {
	t.Parallel()
	var budgets callerBudgets
	one, other := spiffeid.RequireFromString("spiffe://example.org/one"), spiffeid.RequireFromString("spiffe://example.org/other")
	now := time.Now()
	// fill reads until the budget is used up and returns how much that was.
	fill := func(id spiffeid.ID) (total int, leave func()) {
		b, leave := budgets.enter(id, callerBytes, now)
		c := connlimit.NewConn(&endless{}, b)
		buf := make([]byte, 1<<20)
		for total <= 2*callerBytes {
			n, err := c.Read(buf)
			if err != nil {
				break
			}
			total += n
		}
		return total, leave
	}
	sum := 0
	var ends []func()
	for range 2 * callersBytes / callerBytes {
		n, leave := fill(one)
		ends, sum = append(ends, leave), sum+n
	}
	if sum < callersBytes*9/10 || sum > callersBytes*11/10 {
		t.Errorf("connections of one caller were let have %d bytes, want about %d", sum, callersBytes)
	}
	n, leave := fill(other)
	if n < callerBytes*9/10 {
		t.Errorf("another caller was let have %d bytes, want %d", n, callerBytes)
	}
	leave()
	ends[0]()
	ends[0]()
	// The reads that were too many count until their connections end.
	n, leave = fill(one)
	if n < callerBytes*8/10 {
		t.Errorf("after one connection ended, the next was let have %d bytes, want about %d", n, callerBytes)
	}
	for _, end := range append(ends, leave) {
		end()
	}
	if len(budgets.byID) != 0 {
		t.Errorf("%d callers are remembered after they left", len(budgets.byID))
	}
}
