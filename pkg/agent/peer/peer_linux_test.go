package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest/workload/unix"
	xunix "golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/test/bufconn"
)

func dial(t testing.TB, socket string) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

func TestHonestWorkload(t *testing.T) {
	t.Parallel()
	a := newAgent(withPath)
	run(t, a.creds)
	socket := a.start(t, nil)
	binary := copyBinary(t, "workload", 0o755)
	users := map[uint32]syscall.SysProcAttr{uint32(os.Geteuid()): {}}
	if os.Geteuid() == 0 {
		users[nobody] = as(nobody, nobody)
	} else {
		t.Log("other users are left out: that needs root")
	}
	for uid, attr := range users {
		h := startHelper(t, helperOptions{binary: binary, attr: attr}, "call", socket)
		for range 3 { // over one connection
			tell(t, h.stdin)
			h.expect(t, fmt.Sprintf("identity path:%s uid:%d", binary, uid))
		}
	}
}

// TestOtherPIDNamespace: the agent is in a container without the host's PIDs.
func TestOtherPIDNamespace(t *testing.T) {
	t.Parallel()
	needRoot(t, "it makes PID namespaces")
	for mode, want := range map[string]string{
		"proc": "the agent needs the host PID namespace",
		// /proc is still the host's: its numbers are not ours.
		"": "refused rpc error: code = Unavailable",
	} {
		t.Run("mode "+mode, func(t *testing.T) {
			t.Parallel()
			socket := filepath.Join(publicDir(t), "api.sock")
			h := startHelper(t, helperOptions{attr: syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}}, "serve", socket, mode)
			if line := h.next(t); line != "serving" {
				t.Skipf("cannot make a PID namespace here: %s", line)
			}
			if got := whoAmI(t.Context(), dial(t, socket)); !strings.HasPrefix(got, "refused ") || !strings.Contains(got, want) {
				t.Errorf("an agent in another PID namespace: %s, want %q in it", got, want)
			}
		})
	}
}

// TestUnprivilegedAgent: it cannot look at the program of another user's
// process; what it can say of it, it says.
func TestUnprivilegedAgent(t *testing.T) {
	t.Parallel()
	needRoot(t, "the agent is another user than the workload")
	for mode, want := range map[string]string{
		"plain": "identity uid:0",
		"path":  "refused rpc error: code = PermissionDenied",
	} {
		dir := publicDir(t)
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		socket := filepath.Join(dir, "api.sock")
		h := startHelper(t, helperOptions{attr: as(nobody, nobody)}, "serve", socket, mode)
		h.expect(t, "serving")
		if got := whoAmI(t.Context(), dial(t, socket)); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, want %q", mode, got, want)
		}
	}
}

// TestDone: the exit of a process ends its connection without anyone asking,
// for connections from before and after Run began, and for no other.
func TestDone(t *testing.T) {
	t.Parallel()
	a := newAgent(unix.Config{})
	socket := a.start(t, nil)
	var helpers []*helper
	processes := map[int]*Process{}
	connect := func() {
		h := startHelper(t, helperOptions{}, "hold", socket)
		h.expect(t, "connected")
		helpers = append(helpers, h)
		eventually(t, "recorded", func() bool { return a.creds.watch.len() == len(helpers) })
		a.creds.watch.mu.Lock()
		defer a.creds.watch.mu.Unlock()
		for _, p := range a.creds.watch.procs {
			processes[int(p.PID())] = p
		}
	}
	connect()
	connect()
	run(t, a.creds)
	connect()
	connect()
	for i, h := range helpers {
		if i%2 == 1 {
			continue
		}
		if err := h.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-processes[h.pid()].Done(): // a zombie is gone, too
		case <-time.After(30 * time.Second):
			t.Fatalf("helper %d: Done is not closed after the process has exited", i)
		}
		if err := processes[h.pid()].Check(); !errors.Is(err, ErrGone) || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Check: %v, want %v", err, ErrGone)
		}
	}
	for i, h := range helpers {
		if i%2 == 0 {
			continue
		}
		select {
		case <-processes[h.pid()].Done():
			t.Errorf("helper %d: Done is closed while the process lives", i)
		default:
		}
		if err := processes[h.pid()].Check(); err != nil {
			t.Errorf("helper %d: %v", i, err)
		}
	}
}

func TestRunEnds(t *testing.T) {
	t.Parallel()
	c := NewCredentials(Config{})
	for range 2 { // it may be started again
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx) }()
		eventually(t, "running", func() bool {
			c.watch.mu.Lock()
			defer c.watch.mu.Unlock()
			return c.watch.epoll != 0
		})
		if err := c.Run(ctx); err == nil {
			t.Error("a second Run beside the first began")
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

// TestProbeInjected: connections without a kernel behind them.
func TestProbeInjected(t *testing.T) {
	t.Parallel()
	l := bufconn.Listen(1 << 16)
	a := newAgentWith(unix.Config{}, Config{Prober: func(net.Conn) (*Process, error) { return Open(int32(os.Getpid())) }})
	var wg sync.WaitGroup
	wg.Go(func() { _ = a.server.Serve(a.creds.Listener(l)) })
	t.Cleanup(func() { a.server.Stop(); wg.Wait() })
	cc, err := grpc.NewClient("passthrough:///buf", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	if got, want := whoAmI(t.Context(), cc), fmt.Sprintf("identity uid:%d", os.Geteuid()); got != want {
		t.Errorf("over bufconn: %s, want %s", got, want)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	c := NewCredentials(Config{})
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	for name, conn := range map[string]net.Conn{"not from Listener": ours, "not a Unix socket": &conn{Conn: ours}} {
		if _, _, err := c.ServerHandshake(conn); err == nil {
			t.Errorf("%s: the handshake succeeded", name)
		}
	}
	if _, _, err := c.ClientHandshake(t.Context(), "", ours); err == nil {
		t.Error("a client's handshake succeeded")
	}
	for name, ctx := range map[string]context.Context{
		"no RPC":            t.Context(),
		"other credentials": grpcpeer.NewContext(t.Context(), &grpcpeer.Peer{}),
	} {
		if p, err := FromContext(ctx); err == nil || p != nil {
			t.Errorf("%s: process %v, error %v", name, p, err)
		}
	}
	for _, pid := range []int32{-1, 0, 1 << 30} {
		if p, err := Open(pid); err == nil {
			p.Close()
			t.Errorf("Open(%d) succeeded", pid)
		}
	}
}

// TestReads: what attestors read, and what they must not be led to.
func TestReads(t *testing.T) {
	t.Parallel()
	p, err := Open(int32(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.UID() != uint32(os.Geteuid()) || p.GID() != uint32(os.Getegid()) || p.PID() != int32(os.Getpid()) {
		t.Errorf("process %d, user %d, group %d", p.PID(), p.UID(), p.GID())
	}
	status, err := fs.ReadFile(p.Proc(), "status")
	if err != nil || !strings.Contains(string(status), "\nPid:\t"+strconv.Itoa(os.Getpid())+"\n") {
		t.Errorf("status: %v\n%s", err, status)
	}
	// Longer than one buffer, by both ways.
	for _, read := range []func() ([]byte, error){
		func() ([]byte, error) { return fs.ReadFile(p.Proc(), "smaps") },
		func() ([]byte, error) {
			f, err := p.Proc().Open("smaps")
			if err != nil {
				return nil, err
			}
			defer f.Close()
			return io.ReadAll(f)
		},
	} {
		if b, err := read(); err != nil || len(b) < 8192 {
			t.Errorf("smaps: %d bytes, %v", len(b), err)
		}
	}
	want, err := os.Readlink("/proc/self/exe")
	if got, err2 := p.ReadLink("exe"); err != nil || err2 != nil || got != want {
		t.Errorf("exe: %q, %v; want %q, %v", got, err2, want, err)
	}
	if ns, err := p.ReadLink("ns/pid"); err != nil || !strings.HasPrefix(ns, "pid:[") {
		t.Errorf("ns/pid: %q, %v", ns, err)
	}
	exe, err := p.OpenExe()
	if err != nil {
		t.Fatal(err)
	}
	magic := make([]byte, 4)
	if _, err := io.ReadFull(exe, magic); err != nil || string(magic) != "\x7fELF" {
		t.Errorf("the executable begins with %q, %v", magic, err)
	}
	if err := exe.Close(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"exe", "root/etc/passwd", "cwd/doc.go", "root/proc/1/status", "../1/status", "/etc/passwd", "", "task/../status", "nothing"} {
		if b, err := fs.ReadFile(p.Proc(), name); err == nil {
			t.Errorf("ReadFile(%q): %d bytes and no error", name, len(b))
		}
		if f, err := p.Proc().Open(name); err == nil {
			_ = f.Close()
			t.Errorf("Open(%q) succeeded", name)
		}
	}
	for _, name := range []string{"root/proc/self", "cwd/x", "../self", "status"} {
		if got, err := p.ReadLink(name); err == nil {
			t.Errorf("ReadLink(%q) = %q", name, got)
		}
	}
}

// TestEffectiveIDs: the directory's owner is the effective user and group,
// also of a process that nobody may look into.
func TestEffectiveIDs(t *testing.T) {
	t.Parallel()
	needRoot(t, "the process is another user's")
	unreadable := copyBinary(t, "unreadable", 0o711) // makes the process undumpable
	h := startHelper(t, helperOptions{binary: unreadable, attr: as(1234, 4321)}, "sleep")
	var st xunix.Stat_t
	eventually(t, "undumpable", func() bool {
		return xunix.Stat(fmt.Sprintf("/proc/%d/status", h.pid()), &st) == nil && st.Uid == 0
	})
	p, err := Open(int32(h.pid()))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.UID() != 1234 || p.GID() != 4321 {
		t.Errorf("user %d, group %d; want 1234, 4321", p.UID(), p.GID())
	}
}

// TestClosed: no read after Close, and no read of a descriptor that was closed
// in the meantime.
func TestClosed(t *testing.T) {
	t.Parallel()
	for range 200 {
		p, err := Open(int32(os.Getpid()))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var reads atomic.Int64
		for range 4 {
			wg.Go(func() {
				for {
					status, err := fs.ReadFile(p.Proc(), "status")
					if err == nil && !strings.Contains(string(status), "\nPid:\t"+strconv.Itoa(os.Getpid())+"\n") {
						t.Errorf("another's status:\n%s", status)
					}
					if err2 := p.Check(); err != nil && err2 == nil {
						t.Errorf("Check passes after a read that failed: %v", err)
					}
					if reads.Add(1); err != nil {
						if !errors.Is(err, ErrGone) {
							t.Errorf("after Close: %v, want %v", err, ErrGone)
						}
						return
					}
				}
			})
		}
		eventually(t, "reading", func() bool { return reads.Load() > 0 })
		p.Close()
		p.Close()
		if _, err := p.OpenExe(); !errors.Is(err, ErrGone) {
			t.Errorf("OpenExe after Close: %v", err)
		}
		if _, err := p.ReadLink("exe"); !errors.Is(err, ErrGone) {
			t.Errorf("ReadLink after Close: %v", err)
		}
		select {
		case <-p.Done():
		default:
			t.Error("Done is open after Close")
		}
		wg.Wait() // others' reads do not keep it open
	}
}

func TestParseStart(t *testing.T) {
	t.Parallel()
	tail := " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 "
	for name, tc := range map[string]struct {
		stat string
		want uint64
		ok   bool
	}{
		"plain":               {"7 (sh)" + tail + "4242 0 0", 4242, true},
		"last field":          {"7 (sh)" + tail + "4242", 4242, true},
		"name with fields":    {"7 (x) S 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1)" + tail + "4242 0", 4242, true},
		"name with line ends": {"7 (a\n) b)" + tail + "1 0\n", 1, true},
		"empty":               {"", 0, false},
		"no name":             {"7 S 1 2", 0, false},
		"too short":           {"7 (sh) S 1 2", 0, false},
		"ends in field 21":    {"7 (sh)" + strings.TrimSuffix(tail, " "), 0, false},
		"no number":           {"7 (sh)" + tail + "x 0", 0, false},
		"negative":            {"7 (sh)" + tail + "-1 0", 0, false},
		"too large":           {"7 (sh)" + tail + "18446744073709551616 0", 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := parseStart([]byte(tc.stat))
			if got != tc.want || (err == nil) != tc.ok || (err != nil && !errors.Is(err, errStat)) {
				t.Errorf("start %d, error %v; want %d, ok=%v", got, err, tc.want, tc.ok)
			}
		})
	}
}

func FuzzParseStat(f *testing.F) {
	for _, s := range []string{
		"7 (sh) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 0", "7 (", ")", ") ", "))) S 1",
	} {
		f.Add([]byte(s))
	}
	if own, err := os.ReadFile("/proc/self/stat"); err == nil {
		f.Add(own)
	}
	f.Fuzz(func(t *testing.T, stat []byte) {
		got, err := parseStart(stat)
		if err != nil {
			return
		}
		// The slow and obvious way.
		s := string(stat)
		fields := strings.Split(s[strings.LastIndex(s, ")")+1:], " ")
		want, err := strconv.ParseUint(fields[20], 10, 64) // fields[0] is before the blank
		if err != nil || got != want {
			t.Errorf("start %d, want %d (%v)", got, want, err)
		}
	})
}
