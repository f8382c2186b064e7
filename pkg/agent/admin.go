package agent

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/credence-id/credence/pkg/agent/adminapi"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// checkAdminSocket says why agent.admin_socket_path cannot be used. Its
// directory is not one that workloads are given, such as by a bind mount.
func (s *Section) checkAdminSocket() error {
	if s.AdminSocketPath == "" || s.SocketPath == "" {
		return nil
	}
	admin, err := filepath.Abs(s.AdminSocketPath)
	if err != nil {
		return err
	}
	public, err := filepath.Abs(s.SocketPath)
	if err != nil {
		return err
	}
	if dir := filepath.Dir(public); strings.HasPrefix(admin, strings.TrimSuffix(dir, "/")+"/") {
		return fmt.Errorf("%s is in or below %s, the directory of agent.socket_path, which workloads can reach; use another one", admin, dir)
	}
	return nil
}

// newAdmin makes the admin API, where it is configured.
func (a *Agent) newAdmin(o Options) error {
	if a.config.Agent.AdminSocketPath == "" {
		return nil
	}
	var err error
	a.admin, err = adminapi.New(adminapi.Config{Info: a.info, Budget: a.outageBudget, Log: o.LogLevel, Logger: o.Log})
	return err
}

// info is what the admin API says of the agent.
func (a *Agent) info() adminapi.Info {
	now := time.Now()
	i := adminapi.Info{Uptime: now.Sub(a.started), LastSync: a.lastSync(now)}
	i.X509SVIDs, i.JWTSVIDs = a.cache.Held()
	if own := a.identity.current.Load(); own != nil {
		i.Chain = own.Certificates
		// What cannot be verified is shown as it is: whoever asks wants to know.
		if _, chains, err := x509svid.Verify(own.Certificates, a.trust); err == nil {
			i.Chain = chains[0]
		}
	}
	return i
}

// lastSync is now while the push stream is followed: what the server has comes
// by itself. A server that is polled was as the last round found it.
func (a *Agent) lastSync(now time.Time) time.Time {
	if a.pushed.Load() && a.connected.Load() {
		return now
	}
	if at := a.syncedAt.Load(); at != nil {
		return *at
	}
	return time.Time{}
}

// syncing says that what is held was the server's until now.
func (a *Agent) syncing(now time.Time) { a.syncedAt.Store(&now) }
