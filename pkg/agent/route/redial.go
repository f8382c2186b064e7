package route

import (
	"context"
	"errors"
	"net"
	"time"
)

// answerTime is how long an attempt to open a TCP connection is waited for until
// another one takes its place: enough for the first packet to be lost once and
// sent again. Behind a virtual address, such as a Service of Kubernetes, an
// attempt stays with the machine that the address stood for when it began, and
// that may be the one that has just gone.
const answerTime = 2500 * time.Millisecond

// dialTCP opens a TCP connection, by as many attempts as fit into ctx.
func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	return redial(ctx, func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) })
}

func redial(ctx context.Context, dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
	for {
		once, cancel := context.WithTimeout(ctx, answerTime)
		conn, err := dial(once)
		cancel()
		timedOut, ok := errors.AsType[net.Error](err)
		if err == nil || ctx.Err() != nil || !ok || !timedOut.Timeout() {
			return conn, err
		}
	}
}
