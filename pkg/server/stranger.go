package server

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"

	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// strangerBytes is how much a client without a certificate may send on one
// connection. An attestation takes at most a third of it. gRPC reads a message
// whole before anyone can ask who sends it, and waits for the rest of it for as
// long as the client pleases: without a bound, one stranger's connection could
// make the server hold maxStreams messages of maxRecv bytes (S07).
const strangerBytes = 1 << 20

// strangerUnread is how many bytes of answers wait on one such connection until
// they are read. gRPC keeps an answer until then: without a bound, a stranger
// who asks for the bundle on every stream and reads nothing would have as many
// copies of it kept as it likes (S07).
const strangerUnread = 1 << 20

// strangerConn is the connection of a client without a certificate. It is used
// by gRPC's one reader and one writer.
type strangerConn struct {
	net.Conn
	left   int
	unread atomic.Int64 // bytes of answers, about
}

// answer notes an answer of n bytes, or says that too many wait already. A nil
// strangerConn takes all.
func (c *strangerConn) answer(n int) bool {
	if c == nil {
		return true
	}
	if c.unread.Add(int64(n)) <= strangerUnread {
		return true
	}
	c.unread.Add(-int64(n))
	return false
}

// Write notes what was sent, which may be more than answers.
func (c *strangerConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	for {
		unread := c.unread.Load()
		if c.unread.CompareAndSwap(unread, unread-min(unread, int64(n))) {
			return n, err
		}
	}
}

// Read ends the connection when the stranger has sent enough.
func (c *strangerConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, fmt.Errorf("a client without a certificate sent more than %d bytes on one connection", strangerBytes)
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

var errUnread = rpcerr.New(codes.ResourceExhausted, "answers wait on this connection: read them first, or connect with a certificate")

// checkUnread refuses an answer that a stranger's connection has no room for.
func checkUnread(ctx context.Context, answer any) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	if c, ok := p.AuthInfo.(*client); ok && !c.stranger.answer(sizeOf(answer)) {
		return errUnread
	}
	return nil
}
