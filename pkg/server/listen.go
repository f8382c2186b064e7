package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"

	"github.com/credence-id/credence/pkg/unixsock"
)

// Permissions of the local admin's socket and of the directories made for it.
// Whoever may connect is the admin.
const (
	adminSocketPerm = 0o770
	adminDirPerm    = 0o750
)

// listeners are what the server is reached by; those after admin may be nil.
type listeners struct {
	tcp, admin, health, metrics, profiling net.Listener
	// lasting is admin, if the server made its socket.
	lasting *unixsock.Lasting
}

// listen opens what the Config did not bring along.
func (c *Config) listen(ctx context.Context, s Settings) (l listeners, err error) {
	l = listeners{tcp: c.Listener, admin: c.AdminListener}
	if l.tcp == nil {
		if l.tcp, err = listenTCP(ctx, s); err != nil {
			return listeners{}, err
		}
	}
	if l.admin == nil {
		lasting, err := unixsock.ListenLasting(ctx, s.SocketPath, adminSocketPerm, adminDirPerm)
		if err != nil {
			return listeners{}, errors.Join(keyError("server.socket_path", "%w", err), l.closeAll())
		}
		l.admin, l.lasting = lasting, lasting
	}
	if l.health, err = c.HealthChecks.Listen(ctx); err != nil {
		return listeners{}, errors.Join(err, l.closeAll())
	}
	if l.metrics, err = c.Telemetry.ListenMetrics(ctx); err != nil {
		return listeners{}, errors.Join(err, l.closeAll())
	}
	if l.profiling, err = s.Profiling.Listen(ctx, "server"); err != nil {
		return listeners{}, errors.Join(err, l.closeAll())
	}
	return l, nil
}

func listenTCP(ctx context.Context, s Settings) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.address())
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, keyError("server.bind_port", "port %d is in use at %s: stop the other process, or choose another port", s.BindPort, s.BindAddress)
	case errors.Is(err, fs.ErrPermission):
		return nil, keyError("server.bind_port", "port %d needs rights that this process does not have: %w: choose a port above 1023", s.BindPort, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, keyError("server.bind_address", "%s is not an address of this machine", s.BindAddress)
	case err != nil:
		return nil, keyError("server.bind_address", "%w", err)
	}
	return l, nil
}

// closeAll closes those that are open. Those that a server has served are closed already.
func (l listeners) closeAll() error {
	var problems []error
	for _, x := range []net.Listener{l.tcp, l.admin, l.health, l.metrics, l.profiling} {
		if x == nil {
			continue
		}
		if err := x.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			problems = append(problems, fmt.Errorf("closing the listener at %s: %w", x.Addr(), err))
		}
	}
	return errors.Join(problems...)
}
