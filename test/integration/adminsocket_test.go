package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var errNotHeld = errors.New("not held yet")

// info is what `debug getinfo -output json` prints.
type info struct {
	Chain []struct {
		ID struct {
			Path string `json:"path"`
		} `json:"id"`
		Subject string `json:"subject"`
	} `json:"svid_chain"`
	Uptime   int   `json:"uptime"`
	LastSync int64 `json:"last_sync_success,string"`
	X509     int   `json:"cached_x509_svids_count"`
	JWT      int   `json:"cached_jwt_svids_count"`
}

// admin runs a verb of credence-agent over the agent's admin socket.
func (a *agent) adminCLI(args ...string) output {
	a.t.Helper()
	return a.runCommand(a.command(a.bin.agent, append(args, "-socketPath", a.adminSocket())...))
}

func (a *agent) adminSocket() string { return a.dir + "/private/admin.sock" }

func (a *agent) info() info {
	a.t.Helper()
	out := a.adminCLI("debug", "getinfo", "-output", "json")
	if out.code != 0 {
		a.t.Fatalf("debug getinfo: exit code %d: %s", out.code, out.stderr)
	}
	var i info
	if err := json.Unmarshal([]byte(out.stdout), &i); err != nil {
		a.t.Fatalf("%v: %s", err, out.stdout)
	}
	return i
}

// An operator looks into a running agent and changes what it logs; a restart
// makes the socket again, and begins anew. While the server is away the agent
// says since when.
func TestAdminSocketOfTheAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "admin")
	s := w.startServer(serverOptions{})
	a := w.newAgent(s, "a", agentOptions{settings: fmt.Sprintf("admin_socket_path = %q", w.path("a", "private", "admin.sock"))})
	a.attest()
	if stat, err := os.Stat(a.adminSocket()); err != nil || stat.Mode() != fs.ModeSocket|0o770 {
		t.Errorf("the admin socket is %v, %v; want a socket for owner and group", stat, err)
	}

	s.create(w.entry("/web", a.id(), self()))
	sees(t, a, w.id("/web"))
	if out := a.cli("api", "fetch", "jwt", "-audience", "x"); out.code != 0 {
		t.Fatalf("fetching a token: %s", out.stderr)
	}
	i := a.info()
	if len(i.Chain) != 2 || i.Chain[0].ID.Path != a.id().Path() || i.Chain[1].ID.Path != "" || !strings.Contains(i.Chain[0].Subject, "SPIRE") {
		t.Errorf("its chain is %+v, want its SVID and the authority", i.Chain)
	}
	if i.X509 != 1 || i.JWT != 1 {
		t.Errorf("it holds %d X509-SVIDs and %d JWT-SVIDs, want one of each", i.X509, i.JWT)
	}
	if age := time.Since(time.Unix(i.LastSync, 0)); age < -time.Second || age > 5*time.Second {
		t.Errorf("last in sync %v ago, with a server that is there", age)
	}

	for _, step := range []struct{ args, want string }{
		{"logger get", "Logger Level : debug\nLaunch Level : debug\n\n"},
		{"logger set -level warn", "Logger Level : warning\nLaunch Level : debug\n\n"},
		{"logger get", "Logger Level : warning\nLaunch Level : debug\n\n"},
	} {
		if out := a.adminCLI(strings.Fields(step.args)...); out.stdout != step.want || out.code != 0 {
			t.Errorf("%s printed %q (exit code %d, %q), want %q", step.args, out.stdout, out.code, out.stderr, step.want)
		}
	}
	// The level holds for what the agent does from now on.
	before := len(a.proc.log.String())
	if out := a.cli("api", "fetch", "x509", "-silent"); out.code != 0 {
		t.Fatal(out.stderr)
	}
	if logged := a.proc.log.String()[before:]; strings.Contains(logged, "level=DEBUG") {
		t.Errorf("at level warn it logs\n%s", logged)
	}

	// The server goes: the agent was in sync until then.
	s.stop()
	gone := time.Now()
	time.Sleep(2500 * time.Millisecond)
	if at := time.Unix(a.info().LastSync, 0); at.Before(gone.Add(-2*time.Second)) || at.After(gone.Add(time.Second)) {
		t.Errorf("last in sync at %v, the server stopped at %v", at, gone)
	}
	s.start()

	a.stop()
	if _, err := os.Stat(a.adminSocket()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the admin socket of an agent that was stopped: %v", err)
	}
	a.start()
	if out := a.adminCLI("logger", "get"); out.stdout != "Logger Level : debug\nLaunch Level : debug\n\n" {
		t.Errorf("after a restart: %q %s", out.stdout, out.stderr)
	}
	eventually(t, "the restarted agent holds its SVID", func() error {
		if i := a.info(); i.X509 != 1 || i.Uptime > 30 {
			return fmt.Errorf("%w: %+v", errNotHeld, i)
		}
		return nil
	})
}

// Somebody cleans up the agent's directories: its sockets are made again, and
// what is connected stays so.
func TestASocketThatIsRemovedComesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "sock")
	s := w.startServer(serverOptions{})
	a := w.newAgent(s, "a", agentOptions{settings: fmt.Sprintf("admin_socket_path = %q", w.path("a", "private", "admin.sock"))})
	a.attest()
	s.create(w.entry("/web", a.id(), self()))
	sees(t, a, w.id("/web"))
	stream := streamOf(t, a, w.id("/web"))

	for _, dir := range []string{filepath.Dir(a.socket()), filepath.Dir(a.adminSocket())} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "both sockets are there again", func() error {
		_, err := os.Stat(a.socket())
		_, errAdmin := os.Stat(a.adminSocket())
		return errors.Join(err, errAdmin)
	})
	if out := a.cli("api", "fetch", "x509"); out.code != 0 || !strings.Contains(out.stdout, "/web") {
		t.Errorf("a new workload: %s%s", out.stdout, out.stderr)
	}
	if out := a.cli("healthcheck"); out.stdout != "Agent is healthy.\n" {
		t.Errorf("healthcheck: %s%s", out.stdout, out.stderr)
	}
	a.info()

	// The stream of before goes on.
	s.create(w.entry("/api", a.id(), self()))
	stream.has(w.id("/web"), w.id("/api"))
	if !strings.Contains(a.proc.log.String(), "a socket was removed, and made again") {
		t.Error("its log does not say so")
	}
}
