package csi

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestPublishingAgainMountsNothing: kubelet publishes again whatever it finds
// when it is restarted, and drivers that mount each time have filled nodes with
// mounts until they died.
func TestPublishingAgainMountsNothing(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	path := m.Volume("uid-1", "api", DefaultDriver)
	at := m.target(path)
	want := mounted
	for range 1000 {
		what, err := m.mounts().publish(at)
		if err != nil || what != want {
			t.Fatalf("publishing: %v, %v, want %v", what, err, want)
		}
		want = kept
	}
	m.Want(path, "first")
	for _, want := range []outcome{unmounted, absent} {
		if what, err := m.mounts().unpublish(at); err != nil || what != want {
			t.Fatalf("unpublishing: %v, %v, want %v", what, err, want)
		}
		m.WantNothing(path)
	}
	if _, err := os.Stat(filepath.Join(m.Source, "first")); err != nil {
		t.Errorf("unpublishing has removed what is in the agent's directory: %v", err)
	}
}

// TestSettle: whatever is at a target, one publication puts one mount there, and
// one more changes nothing.
func TestSettle(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		before func(m *Machine, path string)
		want   outcome
	}{
		{"nothing", func(*Machine, string) {}, mounted},
		{"an empty directory", func(m *Machine, path string) { m.mkdir(path) }, mounted},
		{"the mount, twice", func(m *Machine, path string) {
			m.published(path)
			m.bind(m.Source, path)
		}, collapsed},
		{"the mount, 50 times", func(m *Machine, path string) {
			m.published(path)
			for range 49 {
				m.bind(m.Source, path)
			}
		}, collapsed},
		{"the mount under another file system", func(m *Machine, path string) {
			m.published(path)
			m.tmpfs(path)
		}, collapsed},
		{"the directory, not restricted", func(m *Machine, path string) { m.bind(m.Source, path) }, replaced},
		{"another directory", func(m *Machine, path string) { m.bind(m.Dir, path) }, replaced},
		{"another file system", func(m *Machine, path string) { m.tmpfs(path) }, replaced},
		{"the directory as it was before it was made again", func(m *Machine, path string) {
			m.published(path)
			m.RemakeSource("first")
		}, replaced},
		{"a directory of a file system that is gone", func(m *Machine, path string) {
			gone := filepath.Join(m.Dir, "gone")
			m.tmpfs(gone)
			m.bind(gone, path)
			if err := unix.Unmount(gone, unix.MNT_DETACH); err != nil {
				m.T.Fatal(err)
			}
		}, replaced},
		{"several others", func(m *Machine, path string) {
			m.bind(m.Dir, path)
			m.tmpfs(path)
			m.bind(m.Source, path)
		}, replaced},
	}
	for _, old := range []bool{false, true} {
		for _, test := range tests {
			name := test.name
			if old {
				name += ", on an old kernel"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				m := NewMachine(t)
				path := m.Volume("uid-1", "api", DefaultDriver)
				test.before(m, path)
				mo := m.mounts()
				mo.old = old
				for _, want := range []outcome{test.want, kept} {
					what, err := mo.publish(m.target(path))
					if err != nil || what != want {
						t.Fatalf("publishing: %v, %v, want %v", what, err, want)
					}
					m.Want(path, "first")
				}
				if what, err := mo.unpublish(m.target(path)); err != nil || what != unmounted {
					t.Fatalf("unpublishing: %v, %v", what, err)
				}
				m.WantNothing(path)
			})
		}
	}
}

func (m *Machine) mkdir(path string) {
	m.T.Helper()
	if err := os.MkdirAll(path, 0o750); err != nil {
		m.T.Fatal(err)
	}
}

func (m *Machine) tmpfs(path string) {
	m.T.Helper()
	m.mkdir(path)
	if err := unix.Mount("test", path, "tmpfs", 0, "size=64k"); err != nil {
		m.T.Fatal(err)
	}
}

func (m *Machine) published(path string) {
	m.T.Helper()
	if _, err := m.mounts().publish(m.target(path)); err != nil {
		m.T.Fatal(err)
	}
}

// TestVolumesAreApart: one pod's volume coming and going is nothing to another's.
func TestVolumesAreApart(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	var paths []string
	for _, uid := range []string{"uid-1", "uid-2"} {
		for _, name := range []string{"api", "api-2"} {
			path := m.Volume(uid, name, DefaultDriver)
			m.published(path)
			paths = append(paths, path)
		}
	}
	for i, path := range paths {
		for _, still := range paths[i:] {
			m.Want(still, "first")
		}
		if _, err := m.mounts().unpublish(m.target(path)); err != nil {
			t.Fatal(err)
		}
		m.WantNothing(path)
	}
}

// TestUnpublishTakesAllMountsAway, also of a node that another driver has left
// with a thousand of them.
func TestUnpublishTakesAllMountsAway(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	path := m.Volume("uid-1", "api", DefaultDriver)
	for range 1000 {
		m.bind(m.Source, path)
	}
	if what, err := m.mounts().unpublish(m.target(path)); err != nil || what != unmounted {
		t.Fatalf("%v, %v", what, err)
	}
	m.WantNothing(path)
}

// TestMultipliedMounts: a driver that binds its directory on top of itself, where
// mounts are shared, doubles the number of mounts each time. All of them go.
func TestMultipliedMounts(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(*mounts, target) (outcome, error){"publish": (*mounts).publish, "unpublish": (*mounts).unpublish} {
		m := NewMachine(t)
		m.tmpfs(m.Source) // is shared, and a mount of this test alone
		m.MakeSource("first")
		path := m.Volume("uid-1", "api", DefaultDriver)
		m.mkdir(path)
		for range 6 {
			if err := unix.Mount(m.Source, path, "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
		}
		if n := m.count(); n < 40 {
			t.Fatalf("only %d mounts", n)
		}
		if _, err := call(m.mounts(), m.target(path)); err != nil {
			t.Fatal(err)
		}
		want := 1 // of the source
		if name == "publish" {
			m.Want(path, "first")
			want = 2
		}
		if n := m.count(); n != want {
			t.Errorf("after %s %d mounts are left, want %d", name, n, want)
		}
	}
}

// count is how many mounts the machine has.
func (m *Machine) count() int {
	m.T.Helper()
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(m.Dir))
	if err != nil {
		m.T.Fatal(err)
	}
	return len(infos)
}

// TestUnpublishLeavesFilesAlone: only a mount, and an empty directory, are taken
// away.
func TestUnpublishLeavesFilesAlone(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	path := m.Volume("uid-1", "api", DefaultDriver)
	m.mkdir(path)
	precious := filepath.Join(path, "precious")
	if err := os.WriteFile(precious, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m.published(path)
	_, err := m.mounts().unpublish(m.target(path))
	if status.Code(asStatus(err)) != codes.FailedPrecondition {
		t.Errorf("%v, want FailedPrecondition", err)
	}
	if n := len(m.Mounts(path)); n != 0 {
		t.Errorf("%d mounts are left", n)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
	if err := os.Remove(precious); err != nil {
		t.Fatal(err)
	}
	if _, err := m.mounts().unpublish(m.target(path)); err != nil {
		t.Error(err)
	}
	m.WantNothing(path)
}

// TestUnpublishOfAVolumeInUse: a mount that somebody on the node is in is taken
// away all the same, so that the pod can end.
func TestUnpublishOfAVolumeInUse(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	path := m.Volume("uid-1", "api", DefaultDriver)
	m.published(path)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := m.mounts().unpublish(m.target(path)); err != nil {
		t.Error(err)
	}
	m.WantNothing(path)
}

// TestSymbolicLinksAreNotFollowed: whoever can put a link into a target's path
// gets nothing mounted, unmounted or removed elsewhere.
func TestSymbolicLinksAreNotFollowed(t *testing.T) {
	t.Parallel()
	pods := func(m *Machine, parts ...string) string {
		return filepath.Join(append([]string{m.Kubelet, "pods"}, parts...)...)
	}
	tests := []struct {
		name string
		// link is where the link is; it leads to a directory outside, in which
		// the rest of the path is, rest.
		link []string
		rest string
	}{
		{"the target", []string{"uid-1", "volumes", "kubernetes.io~csi", "api", "mount"}, ""},
		{"the volume", []string{"uid-1", "volumes", "kubernetes.io~csi", "api"}, "mount"},
		{"the plugin", []string{"uid-1", "volumes", "kubernetes.io~csi"}, "api/mount"},
		{"the volumes", []string{"uid-1", "volumes"}, "kubernetes.io~csi/api/mount"},
		{"the pod", []string{"uid-1"}, "volumes/kubernetes.io~csi/api/mount"},
	}
	for _, test := range tests {
		for _, absolute := range []bool{true, false} {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				m := NewMachine(t)
				victim := filepath.Join(m.Dir, "victim")
				end := filepath.Join(victim, test.rest)
				m.mkdir(end)
				link := pods(m, test.link...)
				m.mkdir(filepath.Dir(link))
				to := victim
				if !absolute {
					var err error
					if to, err = filepath.Rel(filepath.Dir(link), victim); err != nil {
						t.Fatal(err)
					}
				}
				if err := os.Symlink(to, link); err != nil {
					t.Fatal(err)
				}
				path := pods(m, "uid-1", "volumes", "kubernetes.io~csi", "api", "mount")
				m.bind(m.Source, end) // which unpublishing would take away
				for name, call := range map[string]func(target) (outcome, error){"publish": m.mounts().publish, "unpublish": m.mounts().unpublish} {
					what, err := call(m.target(path))
					if status.Code(asStatus(err)) != codes.InvalidArgument {
						t.Errorf("%s: %v, %v, want InvalidArgument", name, what, err)
					}
				}
				if n := len(m.Mounts(end)); n != 1 {
					t.Errorf("the link's end has %d mounts, want the 1 from before", n)
				}
				if _, err := os.Lstat(link); err != nil {
					t.Errorf("the link is gone: %v", err)
				}
			})
		}
	}
}

// TestThePathIsHeld: what the path of a target means is decided once. A directory
// in it that is moved away, with a link put in its place, before the mount is
// made, takes the mount with it.
func TestThePathIsHeld(t *testing.T) {
	t.Parallel()
	for _, old := range []bool{false, true} {
		m := NewMachine(t)
		path := m.Volume("uid-1", "api", DefaultDriver)
		parent := filepath.Dir(path)
		victim := filepath.Join(m.Dir, "victim")
		m.mkdir(filepath.Join(victim, "mount"))
		mo := m.mounts()
		mo.old = old
		mo.did = func(s step) {
			if s == didMake {
				if err := errors.Join(os.Rename(parent, parent+".moved"), os.Symlink(victim, parent)); err != nil {
					t.Error(err)
				}
			}
		}
		if _, err := mo.publish(m.target(path)); err != nil {
			t.Fatal(err)
		}
		if n := len(m.Mounts(filepath.Join(victim, "mount"))); n != 0 {
			t.Errorf("the link's end has %d mounts", n)
		}
		m.Want(parent+".moved/mount", "first")
	}
}

func TestTheDirectoryOfPodsMayBeALink(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	real := m.Kubelet
	m.Kubelet = filepath.Join(m.Dir, "link")
	if err := os.Symlink(real, m.Kubelet); err != nil {
		t.Fatal(err)
	}
	path := m.Volume("uid-1", "api", DefaultDriver)
	for _, want := range []outcome{mounted, kept} {
		if what, err := m.mounts().publish(m.target(path)); err != nil || what != want {
			t.Fatalf("%v, %v, want %v", what, err, want)
		}
	}
	m.Want(filepath.Join(real, strings.TrimPrefix(path, m.Kubelet)), "first")
	found, err := m.mounts().found()
	if err != nil || len(found) != 1 || found[0].path != path {
		t.Errorf("found %v, %v, want %s", found, err, path)
	}
	if _, err := m.mounts().unpublish(m.target(path)); err != nil {
		t.Fatal(err)
	}
	m.WantNothing(path)
}

// TestNotOnThisNode: what keeps this node from publishing is said with what to
// do, and leaves no mount.
func TestNotOnThisNode(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		before func(m *Machine, path string)
		code   codes.Code
		says   string
	}{
		{"no directory of the socket", func(m *Machine, _ string) { m.remove(m.Source) }, codes.FailedPrecondition, "agent.socket_path"},
		{"a directory that was removed under a mount", func(m *Machine, _ string) {
			host := filepath.Join(m.Dir, "host")
			m.mkdir(host)
			m.bind(host, m.Source)
			m.remove(host)
		}, codes.FailedPrecondition, "restart the agent's pod"},
		{"no directory of pods", func(m *Machine, _ string) { m.remove(m.Kubelet) }, codes.FailedPrecondition, "agent.csi.kubelet_dir"},
		{"no directory of the volume", func(m *Machine, path string) { m.remove(filepath.Dir(path)) }, codes.FailedPrecondition, "as kubelet does"},
		{"a file in the place of the target", func(m *Machine, path string) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				m.T.Fatal(err)
			}
		}, codes.InvalidArgument, "not a directory"},
		{"mounts that stay in the container", func(m *Machine, _ string) {
			if err := errors.Join(unix.Mount(m.Kubelet, m.Kubelet, "", unix.MS_BIND, ""), unix.Mount("", m.Kubelet, "", unix.MS_PRIVATE, "")); err != nil {
				m.T.Fatal(err)
			}
		}, codes.FailedPrecondition, "mountPropagation: Bidirectional"},
		{"mounts that only come into the container", func(m *Machine, _ string) {
			if err := errors.Join(unix.Mount(m.Kubelet, m.Kubelet, "", unix.MS_BIND, ""), unix.Mount("", m.Kubelet, "", unix.MS_SLAVE, "")); err != nil {
				m.T.Fatal(err)
			}
		}, codes.FailedPrecondition, "mountPropagation: Bidirectional"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := NewMachine(t)
			path := m.Volume("uid-1", "api", DefaultDriver)
			test.before(m, path)
			_, err := m.mounts().publish(m.target(path))
			if status.Code(asStatus(err)) != test.code || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v, want %v that says %q", err, test.code, test.says)
			}
			if n := len(m.Mounts(path)); n != 0 {
				t.Errorf("%d mounts were made", n)
			}
		})
	}
}

func (m *Machine) remove(path string) {
	m.T.Helper()
	if err := os.RemoveAll(path); err != nil {
		m.T.Fatal(err)
	}
}

// TestProblems: what would keep pods from the Workload API without an error is
// said at the start.
func TestProblems(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	if problems := m.mounts().problems(); len(problems) > 0 {
		t.Errorf("all is well, but: %v", problems)
	}
	says := func(text string) {
		t.Helper()
		if problems := m.mounts().problems(); !slices.ContainsFunc(problems, func(err error) bool { return strings.Contains(err.Error(), text) }) {
			t.Errorf("problems are %v, want one that says %q", problems, text)
		}
	}
	if err := os.Chmod(m.Source, 0o700); err != nil {
		t.Fatal(err)
	}
	says("mode 0700")
	empty := filepath.Join(m.Dir, "pods", "uid", "volumes", "kubernetes.io~empty-dir", "socket")
	m.mkdir(empty)
	m.bind(empty, m.Source)
	says("is an emptyDir")
	m.remove(m.Kubelet)
	says("agent.csi.kubelet_dir")
}

// TestMountsOnTheSourceStayThere: what somebody mounts on the agent's directory
// later does not come to pods.
func TestMountsOnTheSourceStayThere(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	path := m.Volume("uid-1", "api", DefaultDriver)
	m.published(path)
	m.tmpfs(m.Source)
	m.Want(path, "first")
}

// TestCrash: a process that is killed at any step leaves what the next one puts
// right, publishing or unpublishing.
func TestCrash(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		call  string
		at    step
		old   bool
		stale bool // there is a mount of the directory before it was made again
	}{
		{"publish", didMake, false, false},
		{"publish", didAttach, false, false},
		{"publish", didAttach, true, false},
		{"publish", didBind, true, false},
		{"publish", didDetach, false, true},
		{"publish", didBind, true, true},
		{"unpublish", didDetach, false, false},
		{"unpublish", didRemove, false, false},
	} {
		for _, next := range []string{"publish", "unpublish"} {
			t.Run(test.call+", killed after "+string(test.at)+", then "+next, func(t *testing.T) {
				t.Parallel()
				m := NewMachine(t)
				path := m.Volume("uid-1", "api", DefaultDriver)
				if test.stale || test.call == "unpublish" {
					m.published(path)
				}
				if test.stale {
					m.RemakeSource("first")
				}
				m.crash(crashing{Target: path, Call: test.call, Old: test.old, At: test.at})
				if n := len(m.Mounts(path)); n > 1 {
					t.Errorf("the process that was killed has left %d mounts", n)
				}
				if next == "publish" {
					m.published(path)
					m.Want(path, "first")
				}
				if _, err := m.mounts().unpublish(m.target(path)); err != nil {
					t.Fatal(err)
				}
				m.WantNothing(path)
			})
		}
	}
}
