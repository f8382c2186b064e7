package integration

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// The server is away, and a process that nobody has seen before asks for its
// identity: the agent has it ready.
func TestAFreshWorkloadIsServedWhileTheServerIsAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "fresh")
	s := w.startServer(serverOptions{})
	a := w.startAgent(s, "a", agentOptions{})
	program := w.stage("workload")
	s.create(w.entry("/fresh", a.id(), "unix:path:"+program))
	s.create(w.entry("/other", a.id(), "unix:path:/nowhere"))
	a.warm(2)
	s.kill()

	begin := time.Now()
	fresh := w.play("fetch", program, 0, socketVariable+"="+a.socket())
	if code := fresh.exit(t, patience); code != 0 {
		t.Fatalf("the fresh workload ended with exit code %d:\n%s", code, fresh.log)
	}
	c := tally(fresh.events())
	if c.failed != "" || len(c.ids) != 1 || !c.ids[w.id("/fresh").String()] {
		t.Fatalf("the fresh workload was given %v (error %q), want %s", c.ids, c.failed, w.id("/fresh"))
	}
	t.Logf("the process was started, served and gone after %v", time.Since(begin).Round(time.Millisecond))
	if err := checkHealth(t, grpc_health_v1.NewHealthClient(a.conn)); err != nil {
		t.Errorf("an agent that has been in sync and serves is not healthy: %v", err)
	}
	// And somebody without an entry is told so, server or not.
	refused(t, a.conn)
}

// An agent that is restarted while the server is away serves at once what it
// was asked to keep on disk.
func TestARestartedAgentServesFromDiskIfAsked(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "persist")
	s := w.startServer(serverOptions{})
	a := w.startAgent(s, "a", agentOptions{settings: "persist_svids = true"})
	s.create(w.entry("/web", a.id(), self()))
	u := sees(t, a, w.id("/web"))
	leaf := u.find(w.id("/web")).leaf
	eventually(t, "the SVID is on disk", func() error {
		if !onDisk(t, a, leaf.Raw) {
			return errors.New("no file in data_dir has it")
		}
		return nil
	})
	s.stop()
	a.kill()

	a.run()
	begin := time.Now()
	var got x509Update
	eventually(t, "the restarted agent serves", func() (err error) {
		got, err = fetchX509Within(t, a.conn, 5*time.Second)
		return err
	})
	t.Logf("served %v after the restart", time.Since(begin).Round(time.Millisecond))
	if i := got.find(w.id("/web")); i == nil || !i.leaf.Equal(leaf) {
		t.Errorf("served %v, want the SVID from before the restart", got)
	} else {
		i.verify(t)
	}
	for _, f := range filesOf(t, a.dataDir()) {
		if info, err := os.Stat(filepath.Join(a.dataDir(), f)); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v (error %v), want nothing for others: keys may be in it", f, info.Mode(), err)
		}
	}

	s.start()
	healthy(t, a.proc, a.conn)
	s.create(w.entry("/new", a.id(), self()))
	sees(t, a, w.id("/web"), w.id("/new"))
}

// Without that, it has no keys to serve, says so, and serves as soon as the
// server is back.
func TestARestartedAgentWithoutSVIDsOnDiskWaitsForTheServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "nopersist")
	s := w.startServer(serverOptions{})
	a := w.startAgent(s, "a", agentOptions{})
	s.create(w.entry("/web", a.id(), self()))
	u := sees(t, a, w.id("/web"))
	client, err := workloadapi.New(bounded(t), workloadapi.WithAddr("unix://"+a.socket()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	token, err := client.FetchJWTSVID(bounded(t), jwtsvid.Params{Audience: "somebody"})
	if err != nil {
		t.Fatalf("fetching a JWT-SVID: %v", err)
	}
	s.stop()
	a.stop()
	if onDisk(t, a, u.find(w.id("/web")).leaf.Raw) || onDisk(t, a, []byte(w.secret(token.Marshal()))) {
		t.Error("an SVID is on disk, which nobody asked for")
	}

	a.run()
	var answer error
	eventually(t, "the restarted agent answers", func() error {
		u, err := fetchX509(t, a.conn)
		if err == nil {
			t.Fatalf("the agent serves %v, with keys it cannot have", u)
		}
		answer = err
		if strings.Contains(err.Error(), a.socket()) { // not listening yet
			return err
		}
		return nil
	})
	if code := status.Code(answer); code != codes.Unavailable {
		t.Errorf("a workload was answered %v, want Unavailable: it may well have an identity", answer)
	}
	if err := checkHealth(t, grpc_health_v1.NewHealthClient(a.conn)); !errors.Is(err, errNotServing) {
		t.Errorf("the agent's health is %v, want NOT_SERVING", err)
	}
	if out := a.cli("healthcheck"); out.code != 1 || !strings.Contains(out.stderr, "Error: agent is unhealthy") || !strings.Contains(out.stderr, "hint: ") {
		t.Errorf("`healthcheck` ended with %d and said %q", out.code, out.stderr)
	}

	s.start()
	eventually(t, "the workload has its identity back", func() error {
		got, err := fetchX509(t, a.conn)
		if err == nil {
			got.find(w.id("/web")).verify(t)
		}
		return err
	})
	healthy(t, a.proc, a.conn)
}

// onDisk says whether a file of the agent's data_dir has the bytes in it.
func onDisk(t *testing.T, a *agent, want []byte) bool {
	t.Helper()
	for _, f := range filesOf(t, a.dataDir()) {
		data, err := os.ReadFile(filepath.Join(a.dataDir(), f))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was being replaced
		}
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(data, want) {
			return true
		}
	}
	return false
}

// filesOf lists a folder's files, in the folders below it too.
func filesOf(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
