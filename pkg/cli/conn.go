package cli

import (
	"context"
	"net"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Conn is a connection to a socket that is made at the first call, so that a
// command finds the mistakes in its flags before it looks for a server. Its
// methods may be called concurrently.
type Conn struct {
	path           string
	spire, asAgent bool

	mu sync.Mutex
	cc *grpc.ClientConn // nil: no call yet
}

// Conn is a connection to the socket asked for. A socket that is not there is
// the error of the first call: with a hint, or as SPIRE's is. The caller closes
// the connection.
func (s *Socket) Conn() (*Conn, error) {
	path, err := s.Path()
	if err != nil {
		return nil, err
	}
	return &Conn{path: path, spire: s.spire, asAgent: s.asAgent}, nil
}

// Path is the socket it connects to.
func (c *Conn) Path() string { return c.path }

// Invoke is that of [grpc.ClientConnInterface].
func (c *Conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	cc, err := c.dial(ctx)
	if err != nil {
		return err
	}
	return cc.Invoke(ctx, method, args, reply, opts...)
}

// NewStream is that of [grpc.ClientConnInterface].
func (c *Conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	cc, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	return cc.NewStream(ctx, desc, method, opts...)
}

// Close closes the connection, if there is one.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cc == nil {
		return nil
	}
	cc := c.cc
	c.cc = nil
	return cc.Close()
}

func (c *Conn) dial(ctx context.Context) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cc != nil {
		return c.cc, nil
	}
	var err error
	if c.spire {
		// The path in SPIRE's errors is the one its dialer is given.
		dialer := func(ctx context.Context, target string) (net.Conn, error) {
			if c.asAgent {
				target = c.path
			}
			return dialUnix(ctx, strings.TrimPrefix(target, "unix:"))
		}
		c.cc, err = grpc.NewClient("unix:"+c.path,
			grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(dialer),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	} else {
		c.cc, err = Dial(ctx, c.path)
	}
	return c.cc, err
}
