package csi

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/credence-id/credence/pkg/unixsock"
	"golang.org/x/sys/unix"
)

// service is a Service of a machine, which does not run.
func (m *Machine) service() *Service {
	m.T.Helper()
	s, err := New(Config{NodeID: "node-1", Source: m.Source, KubeletDir: m.Kubelet, Endpoint: filepath.Join(m.Kubelet, "plugins", "csi.sock")})
	if err != nil {
		m.T.Fatal(err)
	}
	return s
}

// TestAdopt: an agent that starts finds its mounts, puts right those that are
// not, and leaves others' alone.
func TestAdopt(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	const another = "disk.example.org"
	right := m.Volume("uid-1", "api", DefaultDriver)
	stacked := m.Volume("uid-2", "api", DefaultDriver)
	for range 20 {
		m.bind(m.Source, stacked)
	}
	disk := m.Volume("uid-3", "disk", another)
	m.tmpfs(disk)
	likeOurs := m.Volume("uid-4", "api", another) // of another driver with the same directory
	m.bind(m.Source, likeOurs)
	m.bind(m.Source, likeOurs)
	unknown := m.Volume("uid-5", "api", DefaultDriver)
	m.bind(m.Source, unknown)
	unknownDisk := m.Volume("uid-6", "disk", DefaultDriver)
	m.tmpfs(unknownDisk)
	for _, path := range []string{unknown, unknownDisk} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(path), volumeFile), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(m.Kubelet, "pods", "uid-1", "volumes", "kubernetes.io~secret", "api")
	m.tmpfs(secret)
	m.published(right)
	unmounted := m.Volume("uid-7", "api", DefaultDriver)
	m.mkdir(unmounted)

	for range 2 {
		m.service().Adopt(t.Context())
		for path, want := range map[string]int{disk: 1, likeOurs: 2, unknownDisk: 1, secret: 1, unmounted: 0} {
			if n := len(m.Mounts(path)); n != want {
				t.Errorf("%s has %d mounts, want the %d from before", path, n, want)
			}
		}
		for _, path := range []string{right, stacked, unknown} {
			m.Want(path, "first")
		}
	}
}

// TestAdoptCounts: the metrics say what was found.
func TestAdoptCounts(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	m.published(m.Volume("uid-1", "api", DefaultDriver))
	m.RemakeSource("second")
	m.published(m.Volume("uid-2", "api", DefaultDriver))
	m.tmpfs(m.Volume("uid-3", "disk", "disk.example.org"))
	s := m.service()
	s.Adopt(t.Context())
	for what, want := range map[outcome]float64{kept: 1, replaced: 1, foreign: 1, failed: 0} {
		if got := value(t, s.metrics.adopted.WithLabelValues(string(what))); got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	if got := value(t, s.metrics.volumes); got != 2 {
		t.Errorf("%v volumes, want 2", got)
	}
}

// TestSocketMadeAgain: containers keep the directory, so that they have the new
// socket when an agent starts again or somebody has removed the old one. What
// happens when the directory itself is lost is what docs/csi.md says.
func TestSocketMadeAgain(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	path := m.Volume("uid-1", "api", DefaultDriver)
	m.published(path)
	containers := map[string]string{"private": m.Container(path, unix.MS_PRIVATE), "slave": m.Container(path, unix.MS_SLAVE)}
	socket := filepath.Join(m.Source, "api.sock")
	listen := func() net.Listener {
		t.Helper()
		l, err := unixsock.ListenLasting(t.Context(), socket, 0o777, 0o755)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	reach := func(dir string) error {
		c, err := new(net.Dialer).DialContext(t.Context(), "unix", filepath.Join(dir, "api.sock"))
		if err != nil {
			return err
		}
		return c.Close()
	}
	for range 3 { // runs of the agent
		l := listen()
		m.service().Adopt(t.Context())
		m.Want(path, "first")
		for name, dir := range containers {
			if err := reach(dir); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}

	m.RemakeSource("second")
	l := listen()
	defer l.Close()
	m.service().Adopt(t.Context())
	m.Want(path, "second")
	for name, dir := range containers {
		if err := reach(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a running container (%s) has the new directory (%v): say so in docs/csi.md", name, err)
		}
	}
	for _, propagation := range []uintptr{unix.MS_PRIVATE, unix.MS_SLAVE} {
		if err := reach(m.Container(path, propagation)); err != nil {
			t.Errorf("a container that is started again does not have the new directory: %v", err)
		}
	}
}

// TestAnyUserReachesTheSocket: a container's process, whatever its user, can
// connect through the mount, and do no more.
func TestAnyUserReachesTheSocket(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	m.remove(m.Source) // the agent makes it
	l, err := unixsock.ListenLasting(t.Context(), filepath.Join(m.Source, "api.sock"), 0o777, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if problems := m.mounts().problems(); len(problems) > 0 {
		t.Errorf("as the agent makes the directory: %v", problems)
	}
	path := m.Volume("uid-1", "api", DefaultDriver)
	m.published(path)
	inside := m.Container(path, unix.MS_PRIVATE)
	if err := m.asNobody(filepath.Join(inside, "api.sock")); err != nil {
		t.Errorf("as another user: %v", err)
	}
}
