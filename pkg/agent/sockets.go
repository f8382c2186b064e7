package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"

	"github.com/credence-id/credence/pkg/unixsock"
	"golang.org/x/sync/errgroup"
)

// listen opens the Workload API's socket, for everybody on this machine.
func (a *Agent) listen(ctx context.Context) (net.Listener, error) {
	if a.listener != nil {
		return a.listener, nil
	}
	return a.listenOn(ctx, "socket_path", a.config.Agent.SocketPath, 0o777)
}

// listenAdmin opens the admin API's socket, for the owner and the group, as
// SPIRE's; it is nil when there is no admin API.
func (a *Agent) listenAdmin(ctx context.Context) (net.Listener, error) {
	if a.admin == nil {
		return nil, nil //nolint:nilnil // as documented
	}
	return a.listenOn(ctx, "admin_socket_path", a.config.Agent.AdminSocketPath, 0o770)
}

func (a *Agent) listenOn(ctx context.Context, key, path string, perm fs.FileMode) (net.Listener, error) {
	lis, err := unixsock.ListenLasting(ctx, path, perm, 0o755)
	if err != nil {
		return nil, fmt.Errorf("agent.%s: %w", key, err)
	}
	a.sockets = append(a.sockets, lis)
	return lis, nil
}

// keepSockets makes sockets again that somebody removes, until ctx ends.
// Healthy says what is gone.
func (a *Agent) keepSockets(ctx context.Context) error {
	var g errgroup.Group
	for _, s := range a.sockets {
		g.Go(func() error { return s.Keep(ctx, a.log) })
	}
	return g.Wait()
}

// checkSockets says what nobody can reach.
func (a *Agent) checkSockets() error {
	var problems []error
	for _, s := range a.sockets {
		problems = append(problems, s.Check())
	}
	return errors.Join(problems...)
}
