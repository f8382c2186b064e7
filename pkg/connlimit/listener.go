package connlimit

import (
	"net"
	"sync"
	"time"
)

// Listen wraps a listener whose connections need no more than a bounded number
// of places, such as one for health checks: the oldest makes room for the next.
// What is accepted while all are too young to go is closed at once.
func Listen(l net.Listener, total int, grace time.Duration) net.Listener {
	return &listener{Listener: l, pool: NewPool[struct{}](PoolConfig{Total: total, Grace: grace})}
}

type listener struct {
	net.Listener
	pool *Pool[struct{}]
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &placed{Conn: raw}
		if c.place, err = l.pool.Enter(time.Now(), struct{}{}, func() { _ = c.Close() }); err == nil {
			return c, nil
		}
		_ = raw.Close() // It was not wanted.
	}
}

// placed is a connection with a place, which it gives back once.
type placed struct {
	net.Conn
	place *Place[struct{}]
	once  sync.Once
}

func (c *placed) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		c.place.Leave()
		err = c.Conn.Close()
	})
	return err
}
