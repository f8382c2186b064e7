package peer

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest/workload/unix"
	"github.com/google/go-cmp/cmp"
	xunix "golang.org/x/sys/unix"
)

var withPath = unix.Config{DiscoverWorkloadPath: true, WorkloadSizeLimit: -1}

const nobody = 65534

// as starts a helper as another user and group.
func as(uid, gid uint32) syscall.SysProcAttr {
	return syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
}

// isNow waits until the process runs the program.
func isNow(t *testing.T, pid int, program string) {
	t.Helper()
	eventually(t, "the attacker is "+program, func() bool {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return err == nil && exe == program
	})
}

// refusals counts the RPCs that were refused. The connection ends a moment
// before the RPC does.
func (a *agent) refusals() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.refused)
}

// nothingGranted: neither another identity, nor any.
func (a *agent) nothingGranted(t *testing.T, cause error) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.granted) != 0 {
		t.Errorf("identities given away: %q", a.granted)
	}
	for _, err := range a.refused {
		if !errors.Is(err, cause) {
			t.Errorf("refused with %v, want %v", err, cause)
		}
	}
}

func nosuid(t *testing.T, path string) bool {
	t.Helper()
	var st xunix.Statfs_t
	if err := xunix.Statfs(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Flags&xunix.ST_NOSUID != 0
}

// TestS23_ExecBehindTheSocket: connect, fork a child that keeps the socket,
// become another program. The child gets no identity, least of all the other
// program's.
func TestS23_ExecBehindTheSocket(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		mode os.FileMode // of the program, which is root's
		attr syscall.SysProcAttr
		root bool
	}{
		"other program": {mode: 0o755},
		"setuid":        {mode: os.ModeSetuid | 0o755, attr: as(nobody, nobody), root: true},
		"setgid":        {mode: os.ModeSetgid | 0o755, attr: as(nobody, nobody), root: true},
		"unreadable":    {mode: 0o711, attr: as(nobody, nobody), root: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.root {
				needRoot(t, "the attacker is another user")
			}
			target := copyBinary(t, "victim", tc.mode)
			if tc.root && nosuid(t, target) {
				t.Skipf("needs a temporary directory without nosuid")
			}
			a := newAgent(withPath)
			run(t, a.creds)
			h := startHelper(t, helperOptions{attr: tc.attr}, "attack", a.start(t, nil), target)
			h.expect(t, "connected")
			eventually(t, "recorded", func() bool { return a.creds.watch.len() == 1 })
			tell(t, h.stdin)
			h.expect(t, "forked")
			isNow(t, h.pid(), target)
			tell(t, h.child)
			if got := h.next(t); !strings.HasPrefix(got, "refused ") {
				t.Errorf("the child of the attacker got %s", got)
			}
			eventually(t, "the RPC is refused", func() bool { return a.refusals() == 1 })
			a.nothingGranted(t, ErrChanged)
			eventually(t, "the connection is closed", func() bool { return a.creds.watch.len() == 0 })
		})
	}
}

// TestS23_ExecDuringAttestation: the attestors saw one program, the check
// another.
func TestS23_ExecDuringAttestation(t *testing.T) {
	t.Parallel()
	target := copyBinary(t, "victim", 0o755)
	a := newAgent(withPath)
	attested, proceed := make(chan struct{}), make(chan struct{})
	a.attested = func() { close(attested); <-proceed }
	h := startHelper(t, helperOptions{}, "attack", a.start(t, nil), target)
	h.expect(t, "connected")
	eventually(t, "recorded", func() bool { return a.creds.watch.len() == 1 })
	// The parent waits for its line while the child asks; so the child is
	// told first, and the parent changes while the RPC is under way.
	p := a.creds.watch.any()
	done := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _, err := a.attestor.Attest(t.Context(), p)
		if err == nil {
			a.attested()
			err = p.Check()
		}
		done <- err
	})
	<-attested
	tell(t, h.stdin)
	h.expect(t, "forked")
	isNow(t, h.pid(), target)
	close(proceed)
	wg.Wait()
	if err := <-done; !errors.Is(err, ErrChanged) {
		t.Errorf("Check after the program changed: %v, want %v", err, ErrChanged)
	}
	if err := p.Check(); !errors.Is(err, ErrChanged) {
		t.Errorf("Check again: %v, want the same", err)
	}
	// The child's end of the connection is dead.
	a.attested = nil
	tell(t, h.child)
	if got := h.next(t); !strings.HasPrefix(got, "refused ") {
		t.Errorf("the child got %s", got)
	}
	a.nothingGranted(t, ErrChanged)
}

// TestS23_SetuidBeforeAccept: the attacker became root's program while the
// connection was waiting to be accepted. What the kernel noted at connect
// tells.
func TestS23_SetuidBeforeAccept(t *testing.T) {
	t.Parallel()
	needRoot(t, "the attacker is another user")
	target := copyBinary(t, "victim", os.ModeSetuid|0o755)
	if nosuid(t, target) {
		t.Skipf("needs a temporary directory without nosuid")
	}
	a := newAgent(withPath)
	gate := make(chan struct{})
	h := startHelper(t, helperOptions{attr: as(nobody, nobody)}, "attack", a.start(t, gated(gate)), target)
	h.expect(t, "connected")
	tell(t, h.stdin)
	h.expect(t, "forked")
	isNow(t, h.pid(), target)
	tell(t, h.child)
	close(gate)
	if got := h.next(t); !strings.HasPrefix(got, "refused ") {
		t.Errorf("the child got %s", got)
	}
	a.nothingGranted(t, ErrChanged)
}

// gatedListener leaves connections in the kernel's queue until gate closes.
type gatedListener struct {
	net.Listener
	gate chan struct{}
}

func gated(gate chan struct{}) func(net.Listener) net.Listener {
	return func(l net.Listener) net.Listener { return gatedListener{l, gate} }
}

func (g gatedListener) Accept() (net.Conn, error) {
	<-g.gate
	return g.Listener.Accept()
}

// TestS23_ReusedPID: the process that connected exits, a child keeps its
// socket, and its PID goes to another process, which is whom everyone who
// looks at the PID now sees. Not parallel: it sets the kernel's PID counter.
func TestS23_ReusedPID(t *testing.T) {
	needRoot(t, "it chooses the PID of a new process")
	for _, tc := range []struct {
		name     string
		recorded bool // before the PID is reused
		fallback bool // as on a kernel before 6.5
		other    bool // the PID goes to another user
		run      bool
	}{
		{name: "after it was recorded", recorded: true},
		{name: "after it was recorded, watched", recorded: true, run: true},
		{name: "before it was accepted"},
		{name: "old kernel, after it was recorded", recorded: true, fallback: true},
		{name: "old kernel, before it was accepted, by another user", fallback: true, other: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			noPeerPidfd.Store(tc.fallback)
			defer noPeerPidfd.Store(false)
			a := newAgent(withPath)
			if tc.run {
				run(t, a.creds)
			}
			gate := make(chan struct{})
			if tc.recorded {
				close(gate)
			}
			h := startHelper(t, helperOptions{}, "attack", a.start(t, gated(gate)), "")
			h.expect(t, "connected")
			if tc.recorded {
				eventually(t, "recorded", func() bool { return a.creds.watch.len() == 1 })
			}
			tell(t, h.stdin)
			h.expect(t, "forked")
			if err := h.cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			victim := helperOptions{}
			if tc.other {
				victim.attr = as(nobody, nobody)
			}
			reusePID(t, h.pid(), victim)
			if !tc.recorded {
				close(gate)
			}
			tell(t, h.child)
			if got := h.next(t); !strings.HasPrefix(got, "refused ") {
				t.Errorf("the child got %s", got)
			}
			cause := ErrGone
			if tc.other {
				cause = ErrChanged
			}
			if tc.recorded && !tc.run {
				eventually(t, "the RPC is refused", func() bool { return a.refusals() == 1 })
			}
			a.nothingGranted(t, cause)
		})
	}
}

// reusePID starts a process that has the given PID.
func reusePID(t *testing.T, pid int, o helperOptions) {
	t.Helper()
	for range 300 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", fmt.Append(nil, pid-1), 0); err != nil {
			t.Skipf("cannot choose a PID here: %v", err)
		}
		h := startHelper(t, o, "sleep")
		if h.pid() == pid {
			return
		}
		_ = h.stdin.Close() // somebody else's fork came between
		_ = h.cmd.Wait()
	}
	t.Fatalf("PID %d was not to be had", pid)
}

// TestS23_SocketPassed: a connection given to another process keeps the
// identity of the one that connected, and ends with it.
func TestS23_SocketPassed(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ exec, running bool }{
		"connector exits":             {running: true},
		"connector exits, no Run":     {},
		"connector is another, Run":   {exec: true, running: true},
		"connector is another, alone": {exec: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAgent(withPath)
			if tc.running {
				run(t, a.creds)
			}
			target := ""
			if tc.exec {
				target = copyBinary(t, "victim", 0o755)
			}
			// The connector is told apart from us by its program.
			connector := copyBinary(t, "connector", 0o755)
			to := filepath.Join(publicDir(t), "to.sock")
			l, err := net.Listen("unix", to)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			h := startHelper(t, helperOptions{binary: connector}, "pass", a.start(t, nil), to, target)
			cc, err := overFile(receiveFile(t, l))
			if err != nil {
				t.Fatal(err)
			}
			defer cc.Close()
			h.expect(t, "passed")
			want := fmt.Sprintf("identity path:%s uid:%d", connector, os.Geteuid())
			if got := whoAmI(t.Context(), cc); got != want {
				t.Errorf("over the passed socket: %s, want %s", got, want)
			}
			p := a.creds.watch.any()
			tell(t, h.stdin)
			if tc.exec {
				isNow(t, h.pid(), target)
			} else if err := h.cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			if tc.running && !tc.exec { // nobody has to ask
				select {
				case <-p.Done():
				case <-time.After(30 * time.Second):
					t.Error("Done is not closed after the process has exited")
				}
			}
			if got := whoAmI(t.Context(), cc); !strings.HasPrefix(got, "refused ") {
				t.Errorf("after the connector went: %s", got)
			}
			if diff := cmp.Diff([]string{strings.TrimPrefix(want, "identity ")}, a.granted); diff != "" {
				t.Errorf("identities given (-want +got):\n%s", diff)
			}
		})
	}
}

func receiveFile(t *testing.T, l net.Listener) *os.File {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	oob := make([]byte, 64)
	_, n, _, _, err := c.(*net.UnixConn).ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := xunix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		t.Fatalf("control messages %v: %v", messages, err)
	}
	fds, err := xunix.ParseUnixRights(&messages[0])
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "passed")
}
