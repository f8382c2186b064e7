package csi

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// insideEnv marks a process that is in the mount namespace of the tests.
const insideEnv = "CREDENCE_TEST_CSI_INSIDE"

// noMounts says why tests cannot mount; empty: they can.
var noMounts string

// TestMain has the tests run in a mount namespace of their own, so that what they
// mount is seen by nobody and gone at the end. Its mounts are shared, as those
// of a container with mountPropagation: Bidirectional are.
func TestMain(m *testing.M) {
	if what := os.Getenv(crashEnv); what != "" {
		crash(what)
	}
	if socket := os.Getenv(nobodyEnv); socket != "" {
		if err := connectAsNobody(socket); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	if os.Getenv(insideEnv) == "" {
		noMounts = enter().Error() // only when it could not
	}
	m.Run()
}

// enter goes on as the same process in a namespace of its own, or says why it
// cannot.
func enter() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("a mount namespace needs root: %w", err)
	}
	for _, flag := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", unix.MS_REC|flag, ""); err != nil {
			return err
		}
	}
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), insideEnv+"=1"))
}

// Machine is a node's file system with kubelet's directories and the agent's.
type Machine struct {
	T *testing.T
	// Dir has all others in it.
	Dir string
	// Source is the directory with the agent's socket, Kubelet is kubelet's.
	Source, Kubelet string
}

// NewMachine makes a Machine, or skips the test where nothing can be mounted.
func NewMachine(t *testing.T) *Machine {
	t.Helper()
	if noMounts != "" {
		t.Skip(noMounts)
	}
	dir := t.TempDir()
	m := &Machine{T: t, Dir: dir, Source: filepath.Join(dir, "run", "public"), Kubelet: filepath.Join(dir, "kubelet")}
	t.Cleanup(func() { // before TempDir's, which would remove what is mounted
		infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		if err != nil {
			t.Error(err)
		}
		for _, i := range slices.Backward(infos) {
			_ = unix.Unmount(i.Mountpoint, unix.MNT_DETACH)
		}
	})
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // other users get to the directories in it
		t.Fatal(err)
	}
	m.MakeSource("first")
	for _, d := range []string{"pods", "plugins", "plugins_registry"} {
		if err := os.MkdirAll(filepath.Join(m.Kubelet, d), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// MakeSource makes the agent's directory, with a file of that name.
func (m *Machine) MakeSource(name string) {
	m.T.Helper()
	if err := errors.Join(os.MkdirAll(m.Source, 0o755), os.WriteFile(filepath.Join(m.Source, name), nil, 0o600)); err != nil {
		m.T.Fatal(err)
	}
}

// RemakeSource removes the agent's directory and makes another one, as when
// somebody cleans up and the agent is restarted.
func (m *Machine) RemakeSource(name string) {
	m.T.Helper()
	if err := os.RemoveAll(m.Source); err != nil {
		m.T.Fatal(err)
	}
	m.MakeSource(name)
}

// Volume does what kubelet does for a volume of a driver before it has it
// published, and returns the target.
func (m *Machine) Volume(uid, name, driver string) string {
	m.T.Helper()
	parent := filepath.Join(m.Kubelet, "pods", uid, "volumes", "kubernetes.io~csi", name)
	data, err := json.Marshal(map[string]string{"driverName": driver, "specVolID": name, "volumeLifecycleMode": "Ephemeral"})
	if err := errors.Join(err, os.MkdirAll(parent, 0o750), os.WriteFile(filepath.Join(parent, volumeFile), data, 0o600)); err != nil {
		m.T.Fatal(err)
	}
	return filepath.Join(parent, "mount")
}

// Container does what a container runtime does with a target: it gives the
// container a mount of its own of it, private, or with mountPropagation:
// HostToContainer a slave.
func (m *Machine) Container(target string, propagation uintptr) string {
	m.T.Helper()
	at, err := os.MkdirTemp(m.Dir, "container")
	if err == nil {
		err = errors.Join(os.Chmod(at, 0o755), unix.Mount(target, at, "", unix.MS_BIND|unix.MS_REC, ""),
			unix.Mount("", at, "", unix.MS_REC|propagation, ""))
	}
	if err != nil {
		m.T.Fatal(err)
	}
	return at
}

// Mounts are those at a path, lowest first.
func (m *Machine) Mounts(path string) []*mountinfo.Info {
	m.T.Helper()
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return i.Mountpoint != path, false })
	if err != nil {
		m.T.Fatal(err)
	}
	return infos
}

// Want checks that a target has one mount, with all restrictions, that shows a
// file.
func (m *Machine) Want(target, file string) {
	m.T.Helper()
	infos := m.Mounts(target)
	if len(infos) != 1 {
		m.T.Fatalf("%s has %d mounts, want 1", target, len(infos))
	}
	for _, option := range []string{"ro", "nosuid", "nodev", "noexec"} {
		if !slices.Contains(strings.Split(infos[0].Options, ","), option) {
			m.T.Errorf("%s is mounted %s, without %s", target, infos[0].Options, option)
		}
	}
	if _, err := os.Stat(filepath.Join(target, file)); err != nil {
		m.T.Errorf("the mount shows another directory: %v", err)
	}
	if err := os.WriteFile(filepath.Join(target, "written"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
		m.T.Errorf("writing to the mount: %v, want EROFS", err)
	}
}

// WantNothing checks that there is no target, and no mount.
func (m *Machine) WantNothing(target string) {
	m.T.Helper()
	if n := len(m.Mounts(target)); n > 0 {
		m.T.Errorf("%s has %d mounts, want none", target, n)
	}
	if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
		m.T.Errorf("%s is still there: %v", target, err)
	}
}

func (m *Machine) mounts() *mounts {
	m.T.Helper()
	made, err := newMounts(m.Source, m.Kubelet, DefaultDriver)
	if err != nil {
		m.T.Fatal(err)
	}
	return made
}

func (m *Machine) target(path string) target {
	m.T.Helper()
	t, err := parseTarget(m.Kubelet, path)
	if err != nil {
		m.T.Fatal(err)
	}
	return t
}

// bind mounts a directory at a target, as somebody else would. The mount is
// private: each mount on top of one that is shared, and shows the same
// directory, doubles their number.
func (m *Machine) bind(from, target string) {
	m.T.Helper()
	if err := errors.Join(os.MkdirAll(target, 0o750), unix.Mount(from, target, "", unix.MS_BIND, ""), unix.Mount("", target, "", unix.MS_PRIVATE, "")); err != nil {
		m.T.Fatal(err)
	}
}

// crashEnv has what a process is to do and where it is to end.
const crashEnv = "CREDENCE_TEST_CSI_CRASH"

// crashing says what is done: publish or unpublish at a target of a machine, by
// which calls, and after which step the process is killed.
type crashing struct {
	Source, Kubelet, Target, Call string
	Old                           bool
	At                            step
}

// crash does so. It returns when the step was not reached.
func crash(what string) {
	var c crashing
	if err := json.Unmarshal([]byte(what), &c); err != nil {
		panic(err)
	}
	t, err := parseTarget(c.Kubelet, c.Target)
	if err != nil {
		panic(err)
	}
	m := &mounts{source: c.Source, kubeletDir: c.Kubelet, driver: DefaultDriver, old: c.Old, did: func(s step) {
		if s == c.At {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}}
	call := map[string]func(target) (outcome, error){"publish": m.publish, "unpublish": m.unpublish}[c.Call]
	if _, err := call(t); err != nil {
		panic(err)
	}
	os.Exit(0)
}

// crash has another process do so, and wants it to be killed.
func (m *Machine) crash(c crashing) {
	m.T.Helper()
	c.Source, c.Kubelet = m.Source, m.Kubelet
	what, err := json.Marshal(c)
	if err != nil {
		m.T.Fatal(err)
	}
	cmd := exec.CommandContext(m.T.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crashEnv+"="+string(what))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		m.T.Fatalf("%s did not end after %q: %v\n%s", c.Call, c.At, err, out)
	}
}

// nobodyEnv has a socket that a process connects to as another user.
const nobodyEnv = "CREDENCE_TEST_CSI_NOBODY"

// connectAsNobody does so, and tries to remove the socket, which is not possible.
func connectAsNobody(socket string) error {
	const nobody = 65534
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(nobody, nobody, nobody), syscall.Setresuid(nobody, nobody, nobody)); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return fmt.Errorf("connecting: %w", err)
	}
	if err := unix.Unlink(socket); !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("removing the socket, which must be refused: %w", cmp.Or(err, errors.New("it is gone")))
	}
	return nil
}

// asNobody has another process do so: the user is the whole process's.
func (m *Machine) asNobody(socket string) error {
	m.T.Helper()
	cmd := exec.CommandContext(m.T.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), nobodyEnv+"="+socket)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
