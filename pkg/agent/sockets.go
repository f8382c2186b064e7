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

const (
	// apiPerm is for everybody on this machine, and in its pods with whatever
	// user: who may have what is decided by attestation.
	apiPerm fs.FileMode = 0o777
	// adminPerm is for the owner and the group, as SPIRE's.
	adminPerm fs.FileMode = 0o770
	// kubeletPerm is for root, as whom kubelet runs.
	kubeletPerm fs.FileMode = 0o600
)

// listeners are the Unix sockets that are served. Those that are not configured
// are nil.
type listeners struct {
	api, admin, csi, registration net.Listener
}

// listen opens all of them, or none.
func (a *Agent) listen(ctx context.Context) (*listeners, error) {
	l := &listeners{api: a.listener}
	s := &a.config.Agent
	for _, want := range []struct {
		at        *net.Listener
		key, path string
		perm, dir fs.FileMode
		wanted    bool
	}{
		{&l.api, "socket_path", s.SocketPath, apiPerm, 0o755, a.listener == nil && !a.csiAlone},
		{&l.admin, "admin_socket_path", s.AdminSocketPath, adminPerm, 0o755, a.admin != nil},
		{&l.csi, "csi.socket_path", s.CSI.socket(), kubeletPerm, 0o750, a.csi != nil},
		{&l.registration, "csi.registration_dir", s.CSI.registration(), kubeletPerm, 0o750, a.csi != nil && s.CSI.RegistrationDir != ""},
	} {
		if !want.wanted {
			continue
		}
		lis, err := unixsock.ListenLasting(ctx, want.path, want.perm, want.dir)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("agent.%s: %w", want.key, err), l.close())
		}
		*want.at = lis
		a.sockets = append(a.sockets, lis)
	}
	return l, nil
}

// close closes those that are open, and are not served yet.
func (l *listeners) close() error {
	var problems []error
	for _, lis := range []net.Listener{l.api, l.admin, l.csi, l.registration} {
		if lis != nil {
			problems = append(problems, lis.Close())
		}
	}
	return errors.Join(problems...)
}

// keepSockets makes sockets again that somebody removes, until ctx ends.
// Healthy says what is gone. When the Workload API's directory was made again
// too, pods have the one that is gone.
func (a *Agent) keepSockets(ctx context.Context) error {
	var made func(context.Context)
	if a.csi != nil {
		made = a.csi.Adopt
	}
	var g errgroup.Group
	for _, s := range a.sockets {
		g.Go(func() error { return s.Keep(ctx, a.log, made) })
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
