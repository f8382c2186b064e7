package integration

import (
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
)

// `make run` is credence-server dev: within seconds the caller's processes have
// an identity, and Ctrl-C leaves nothing behind.
func TestDevShowsTheMainJobAndLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "dev")
	temp := w.path("tmp")
	if err := os.Mkdir(temp, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(w.bin.server, "dev")
	cmd.Env = append(os.Environ(), "TMPDIR="+temp)
	begin := time.Now()
	p := w.launch("dev", cmd)
	p.await(t, `Ctrl-C ends it`)
	t.Logf("the identity was shown after %v", time.Since(begin).Round(time.Millisecond))

	text := p.log.String()
	for _, want := range []string{"NOT FOR PRODUCTION", "-----BEGIN CERTIFICATE-----", "JWT-SVID for the audience", "Try next"} {
		if !strings.Contains(text, want) {
			t.Errorf("it did not say %q", want)
		}
	}
	id := p.await(t, `\n  (spiffe://example\.org/user/\S+)\n`)[1]
	socket := p.await(t, `Workload API +unix://(\S+)`)[1]
	admin := p.await(t, `admin socket +(\S+)`)[1]

	u, err := fetchX509(t, dialSocket(t, socket))
	if err != nil || u.find(spiffeid.RequireFromString(id)) == nil {
		t.Fatalf("the Workload API gave %v (error %v), want %s", u, err, id)
	}
	u.svids[0].verify(t)
	if list, err := entryv1.NewEntryClient(dialSocket(t, admin)).ListEntries(bounded(t), &entryv1.ListEntriesRequest{}); err != nil || len(list.GetEntries()) != 1 {
		t.Errorf("the admin socket lists %v (error %v), want one entry", list.GetEntries(), err)
	}
	// What it says to try next is right.
	agentID := p.await(t, `entry create -parentID (\S+) `)[1]
	out := w.runCommand(w.command(w.bin.server, "entry", "create", "-socketPath", admin, "-parentID", agentID,
		"-spiffeID", "spiffe://example.org/second", "-selector", "unix:uid:"+strconv.Itoa(os.Getuid())))
	if out.code != 0 {
		t.Errorf("what it says to try next ended with exit code %d: %s", out.code, out.stderr)
	}

	if !p.end(syscall.SIGINT) {
		t.Fatal("it does not end at Ctrl-C")
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d after Ctrl-C, want 0", code)
	}
	if left := filesOf(t, temp); len(left) != 0 {
		t.Errorf("it left %q behind", left)
	}
	if dirs, err := os.ReadDir(temp); err != nil || len(dirs) != 0 {
		t.Errorf("it left %v behind (error %v)", dirs, err)
	}
}

// With a folder of the user's, everything is kept in it, and is there the next
// time.
func TestDevKeepsTheFolderItWasTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "devdir")
	dir := w.path("d")
	ids := make([]string, 0, 2)
	for range 2 {
		p := w.launch("dev", exec.Command(w.bin.server, "dev", "-dataDir", dir, "-trustDomain", "dev.test"))
		ids = append(ids, p.await(t, `\n  (spiffe://dev\.test/user/\S+)\n`)[1])
		if !p.end(syscall.SIGTERM) || p.cmd.ProcessState.ExitCode() != 0 {
			t.Fatalf("it ended with %v", p.cmd.ProcessState)
		}
	}
	if ids[0] != ids[1] {
		t.Errorf("identities %q, want the same twice", ids)
	}
	for _, f := range filesOf(t, dir) {
		if strings.HasSuffix(f, ".sock") {
			t.Errorf("the socket %s was left behind", f)
		}
	}
}

// An agent that was banned, as dev says to try, does not take the server along;
// and a terminal that is closed leaves nothing behind either.
func TestDevOutlivesItsAgentAndEndsWithItsTerminal(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "devban")
	temp := w.path("tmp")
	if err := os.Mkdir(temp, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(w.bin.server, "dev")
	cmd.Env = append(os.Environ(), "TMPDIR="+temp)
	p := w.launch("dev", cmd)
	agentID := p.await(t, `agent ban -spiffeID (\S+) `)[1]
	socket := p.await(t, `Workload API +unix://(\S+)`)[1]
	admin := p.await(t, `admin socket +(\S+)`)[1]

	// Every user of the machine may reach the Workload API.
	for dir := filepath.Dir(socket); dir != temp; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm()&0o001 == 0 {
			t.Errorf("%s has mode %v (error %v), others cannot pass", dir, info.Mode(), err)
		}
	}
	if out := w.runCommand(w.command(w.bin.server, "agent", "ban", "-socketPath", admin, "-spiffeID", agentID)); out.code != 0 {
		t.Fatalf("agent ban: %s", out.stderr)
	}
	p.await(t, `The agent is banned`)
	if out := w.runCommand(w.command(w.bin.server, "entry", "count", "-socketPath", admin)); out.code != 0 {
		t.Errorf("the server went with its agent: %s", out.stderr)
	}

	if signal.Ignored(syscall.SIGHUP) {
		t.Skip("this test was started by nohup, and so was dev: it rightly lives on")
	}
	if !p.end(syscall.SIGHUP) {
		t.Fatal("it does not end at SIGHUP")
	}
	if dirs, err := os.ReadDir(temp); err != nil || len(dirs) != 0 {
		t.Errorf("it left %v behind (error %v)", dirs, err)
	}
}
