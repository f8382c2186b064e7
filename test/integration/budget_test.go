package integration

import (
	"errors"
	"fmt"
	"regexp"
	"testing"
	"time"
)

var errNotYet = errors.New("not yet")

// An operator asks an agent for how long it could go on without its server,
// before the server goes, while it is away, and after.
func TestTheAgentSaysHowLongItCanGoOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "budget")
	s := w.startServer(serverOptions{})
	a := w.newAgent(s, "a", agentOptions{settings: fmt.Sprintf("admin_socket_path = %q", w.path("a", "private", "admin.sock"))})
	a.attest()
	s.create(w.entry("/web", a.id(), self()))
	s.create(w.entry("/other", a.id(), "unix:path:/nowhere"))
	streamOf(t, a, w.id("/web"))
	a.warm(2)

	says := func(when, pattern string, more ...string) {
		t.Helper()
		out := a.cli(append([]string{"healthcheck", "-verbose"}, more...)...)
		if out.code != 0 || !regexp.MustCompile(pattern).MatchString(out.stdout) {
			t.Errorf("%s it ended with %d and said\n%s%swant %s", when, out.code, out.stdout, out.stderr, pattern)
		}
	}
	socket := []string{"-adminSocketPath", a.adminSocket()}
	says("beside a server", `(?s)Agent is healthy\.\nOutage budget: (59m|1h0m)\d+s\n  Server:     followed now\n`+
		`  Identities: 1 in use, 1 warm, 0 that .*\n  Own SVID:   until \S+Z; after it .* by itself\n  Restart:    during an outage takes it all`, socket...)
	says("without an admin socket", `(?s)Agent is healthy\.\nOutage budget: not known: .*-adminSocketPath\n$`, "-adminSocketPath", w.path("nowhere.sock"))

	s.kill()
	a.proc.await(t, `level=INFO msg="there is no server: what is held is served for the outage budget" outage_budget=(59m|1h0m)\d+s served=2 unserved=0`)
	says("without a server", `Outage budget: (58m|59m|1h0m)\d+s\n  Server:     away since \S+Z, for \d+s\n  Identities: 1 in use, 1 warm`, socket...)
	metric := func(name string, ok func(float64) bool) {
		t.Helper()
		eventually(t, name, func() error {
			got, err := a.metric(name)
			if err == nil && !ok(got) {
				err = fmt.Errorf("%w: %v", errNotYet, got)
			}
			return err
		})
	}
	metric("credence_agent_server_away_seconds", func(v float64) bool { return v > 0 && v < 600 })
	metric("credence_agent_outage_budget_seconds", func(v float64) bool { return v > 3000 && v <= 3600 })
	metric("credence_agent_svid_left_seconds", func(v float64) bool { return v > 3000 && v <= 3600 })
	metric(`credence_agent_cache_identities{state="warm"}`, func(v float64) bool { return v == 1 })

	begin := time.Now()
	s.start()
	a.proc.await(t, `msg="in sync with the server" .*away_for=[1-9]`)
	t.Logf("back in sync %v after the server was started", time.Since(begin).Round(time.Millisecond))
	metric("credence_agent_server_away_seconds", func(v float64) bool { return v == 0 })
	says("beside the server again", `Server:     followed now`, socket...)
}
