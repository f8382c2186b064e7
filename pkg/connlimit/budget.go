package connlimit

import (
	"fmt"
	"net"
	"sync/atomic"
	"time"
)

// forgiven is how many bytes are forgotten a second: messages of calls that
// were given up, which gRPC has let go of.
const forgiven = 64 << 10

// callCost is how many bytes a call counts that was begun, until its handler is
// reached: about what gRPC keeps for one that waits for its message.
const callCost = 4 << 10

// Budget bounds the bytes of messages that were begun and not ended, and the
// calls that wait for them. gRPC holds them for as long as the client pleases,
// one message on each stream. A Budget is one connection's, or what several of
// one origin share.
type Budget struct {
	size   int64
	used   atomic.Int64
	shared *Budget
	closed atomic.Bool
	last   time.Time // when the reader last forgave
}

// NewBudget returns the Budget of a connection, of size bytes, or of what
// connections share. Shared, if not nil, bounds them together.
func NewBudget(size int, shared *Budget, now time.Time) *Budget {
	return &Budget{size: int64(size), shared: shared, last: now}
}

// Reached tells that the handler of a call was: of one with a single message,
// after that.
func (b *Budget) Reached() {
	if b != nil {
		b.less(callCost)
	}
}

// Took tells that a message of n bytes has come whole. A nil Budget is no limit.
func (b *Budget) Took(n int) {
	if b != nil {
		b.less(int64(n) + messageHeader)
	}
}

// Close gives back what the connection has used of a shared Budget. What is still
// read of it is given back at once.
func (b *Budget) Close() {
	if b != nil {
		b.closed.Store(true)
		b.less(b.used.Load())
	}
}

// less never leaves a credit: what was taken says nothing about what comes.
func (b *Budget) less(n int64) {
	for {
		used := b.used.Load()
		part := min(used, n)
		if !b.used.CompareAndSwap(used, used-part) {
			continue
		}
		if b.shared != nil {
			b.shared.used.Add(-part)
		}
		return
	}
}

// read counts n bytes and says whether they are within the budget. One
// goroutine calls it.
func (b *Budget) read(n int) bool {
	b.used.Add(int64(n))
	if b.shared != nil {
		b.shared.used.Add(int64(n))
	}
	if b.closed.Load() {
		b.less(b.used.Load())
		return false
	}
	if b.within() {
		return true
	}
	now := time.Now()
	b.less(int64(min(now.Sub(b.last).Seconds(), 1<<20) * forgiven))
	b.last = now
	return b.within()
}

func (b *Budget) within() bool {
	return b.used.Load() <= b.size && (b.shared == nil || b.shared.used.Load() <= b.shared.size)
}

// Sizes of HTTP/2 and gRPC (RFC 9113, sections 3.4 and 4.1; gRPC over HTTP2).
const (
	preface       = 24 // what a client begins with
	frameHeader   = 9
	messageHeader = 5
	// Types of frames.
	dataFrame    = 0
	headersFrame = 1
)

// frames counts the payload of the DATA frames in a stream of bytes, and the
// calls that are begun. Other frames are not held by anybody.
type frames struct {
	skip   int // of the frame, or of the preface, that is not DATA
	data   int // of the DATA frame
	header [frameHeader]byte
	have   int // bytes of header
}

// count is how many bytes of p are payload of DATA frames, with what the calls
// cost that p begins.
func (f *frames) count(p []byte) (held int) {
	for len(p) > 0 {
		switch {
		case f.skip > 0:
			n := min(f.skip, len(p))
			f.skip, p = f.skip-n, p[n:]
		case f.data > 0:
			n := min(f.data, len(p))
			f.data, p, held = f.data-n, p[n:], held+n
		default:
			n := copy(f.header[f.have:], p)
			f.have, p = f.have+n, p[n:]
			if f.have < frameHeader {
				continue
			}
			f.have = 0
			length := int(f.header[0])<<16 | int(f.header[1])<<8 | int(f.header[2])
			switch f.header[3] {
			case dataFrame:
				f.data = length
			case headersFrame:
				held += callCost
				f.skip = length
			default:
				f.skip = length
			}
		}
	}
	return held
}

// Conn is the server's side of an HTTP/2 connection whose reader stops at its
// Budget. Use [NewConn].
type Conn struct {
	net.Conn
	budget *Budget
	frames frames
}

// NewConn returns a Conn on which nothing has been read yet.
func NewConn(c net.Conn, b *Budget) *Conn {
	return &Conn{Conn: c, budget: b, frames: frames{skip: preface}}
}

// Read ends the connection when the other end has sent too much.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if held := c.frames.count(p[:n]); held > 0 && !c.budget.read(held) {
		return 0, fmt.Errorf("more than %d bytes of unfinished calls on one connection, or more than its origin may have", c.budget.size)
	}
	return n, err
}
