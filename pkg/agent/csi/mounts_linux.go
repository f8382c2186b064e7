package csi

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mounts puts one directory at targets and takes it away again. It remembers
// nothing: what there is, the kernel knows. Calls for one target must not
// overlap.
type mounts struct {
	source     string
	kubeletDir string
	driver     string
	// old has mounts made as on kernels before 5.12; tests set it.
	old bool
	// did is told in tests what has just been done; nil else.
	did func(step)
}

// step is one of the points at which a process can end and leave something.
type step string

const (
	didMake   step = "target made"
	didDetach step = "mount detached"
	didBind   step = "mounted, not yet restricted" // old kernels only
	didAttach step = "mounted"
	didRemove step = "target removed"
)

func newMounts(source, kubeletDir, driver string) (*mounts, error) {
	return &mounts{source: source, kubeletDir: kubeletDir, driver: driver}, nil
}

func (m *mounts) done(s step) {
	if m.did != nil {
		m.did(s)
	}
}

func (m *mounts) pods() string { return filepath.Join(m.kubeletDir, podsDir) }

// ready says why no pod can be given the source now.
func (m *mounts) ready() error {
	src, err := m.openSource()
	if err != nil {
		return err
	}
	src.close()
	return nil
}

// openSource opens the directory that pods are given.
func (m *mounts) openSource() (dir, error) {
	src, err := openDir(unix.AT_FDCWD, m.source, 0)
	if err != nil {
		return dir{}, unready("the directory of agent.socket_path: %w", err)
	}
	if src.removed {
		src.close()
		return dir{}, unready("the directory of agent.socket_path, %s, was removed, on the host if not here; restart the agent's pod", m.source)
	}
	return src, nil
}

// publish sees to it that there is one mount of the source at the target.
func (m *mounts) publish(t target) (outcome, error) {
	if err := m.ready(); err != nil { // before anything is made
		return failed, err
	}
	p, err := m.open(t)
	if errors.Is(err, fs.ErrNotExist) {
		return failed, unready("%w: its parent must be there; the agent has to see kubelet_dir as kubelet does", err)
	}
	if err != nil {
		return failed, err
	}
	defer p.close()
	if err := p.make(); err != nil {
		return failed, err
	}
	m.done(didMake)
	return m.settle(p)
}

// unpublish leaves no mount at the target, and no target.
func (m *mounts) unpublish(t target) (outcome, error) {
	p, err := m.open(t)
	if errors.Is(err, fs.ErrNotExist) {
		return absent, nil
	}
	if err != nil {
		return failed, err
	}
	defer p.close()
	layers, _, err := p.look()
	if err != nil {
		return failed, err
	}
	if _, err := m.peel(p, 0); err != nil {
		return failed, err
	}
	if err := p.remove(); err != nil {
		return failed, err
	}
	m.done(didRemove)
	if layers == 0 {
		return absent, nil
	}
	return unmounted, nil
}

// settle takes away what is mounted at the target until the source is, alone;
// when it is not there at all, it is mounted. Mounts on top of each other go one
// by one from the top, so that the one that was right stays.
func (m *mounts) settle(p *place) (outcome, error) {
	src, err := m.openSource()
	if err != nil {
		return failed, err
	}
	defer src.close()
	layers, on, err := p.look()
	if err != nil {
		return failed, err
	}
	if layers == 1 && p.has(src) {
		return kept, nil
	}
	if err := reaches(on, m.kubeletDir); err != nil {
		return failed, err
	}
	what := mounted
	if layers > 0 {
		what = replaced
		if layers, err = m.peel(p, 1); err != nil {
			return failed, err
		}
		if layers == 1 && p.has(src) {
			return collapsed, nil
		}
		if _, err := m.peel(p, 0); err != nil {
			return failed, err
		}
	}
	if err := m.attach(p); err != nil {
		return failed, err
	}
	m.done(didAttach)
	return what, nil
}

// maxRounds bounds how often peel looks again.
const maxRounds = 64

// peel takes mounts away from the top until at most leave are left, and says how
// many are. One that is shared may take others with it.
func (m *mounts) peel(p *place, leave int) (layers int, err error) {
	for range maxRounds {
		if layers, _, err = p.look(); err != nil || layers <= leave {
			return layers, err
		}
		for range layers - leave {
			if err := m.detach(p); errors.Is(err, unix.EINVAL) { // It is no mount any more.
				break
			} else if err != nil {
				return layers, err
			}
		}
	}
	return layers, fmt.Errorf("%d mounts are left at %s, and more come as these are taken away; see who mounts there", layers, p.path)
}

// detach takes the topmost mount away. It is detached, not only unmounted: one
// that somebody on the node looks into must not keep a pod from ending.
func (m *mounts) detach(p *place) error {
	// The parent cannot change, and UMOUNT_NOFOLLOW sees to the last element.
	if err := unix.Unmount(p.leafPath(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmounting %s: %w", p.path, err)
	}
	m.done(didDetach)
	return nil
}

// found are the targets that have something mounted on them, of any driver.
func (m *mounts) found() ([]target, error) {
	pods, err := openDir(unix.AT_FDCWD, m.pods(), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer pods.close()
	real, err := pods.name()
	if err != nil {
		return nil, err
	}
	var targets []target
	seen := make(map[string]bool)
	_, err = mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		rest, ok := strings.CutPrefix(i.Mountpoint, real+"/")
		if !ok || seen[rest] {
			return true, false
		}
		if t, err := parseTarget(m.kubeletDir, m.pods()+"/"+rest); err == nil {
			seen[rest] = true
			targets = append(targets, t)
		}
		return true, false
	})
	if err != nil {
		return nil, fmt.Errorf("reading what is mounted: %w", err)
	}
	return targets, nil
}

// adopt is publish for a target that has a mount, if it is this driver's.
func (m *mounts) adopt(t target) (outcome, error) {
	p, err := m.open(t)
	if errors.Is(err, fs.ErrNotExist) {
		return absent, nil
	}
	if err != nil {
		return failed, err
	}
	defer p.close()
	driver, err := p.driver()
	if err != nil {
		return failed, err
	}
	if driver != "" && driver != m.driver {
		return foreign, nil
	}
	src, err := m.openSource()
	if err != nil {
		return failed, err
	}
	defer src.close()
	layers, _, err := p.look()
	switch {
	case err != nil:
		return failed, err
	case layers == 0:
		return absent, nil
	case driver == "" && !p.shows(src):
		return foreign, nil // Nothing says that it is ours.
	}
	return m.settle(p)
}

// problems are what keeps pods from the Workload API although mounting may work.
func (m *mounts) problems() []error {
	src, err := m.openSource()
	if err != nil {
		return []error{err}
	}
	defer src.close()
	var problems []error
	if src.mode&0o001 == 0 {
		problems = append(problems, fmt.Errorf("%s has mode %04o: pods with another user than %d cannot use it; set it to 0755", m.source, src.mode&0o7777, src.uid))
	}
	if root, err := src.root(); err != nil {
		problems = append(problems, err)
	} else if strings.Contains(root, "/kubernetes.io~empty-dir/") {
		problems = append(problems, fmt.Errorf("%s is an emptyDir, which is removed with the agent's pod; use a hostPath, or pods lose the Workload API at each restart of the agent", m.source))
	}
	pods, err := openDir(unix.AT_FDCWD, m.pods(), 0)
	if err != nil {
		return append(problems, fmt.Errorf("agent.csi.kubelet_dir: %w", err))
	}
	defer pods.close()
	on, err := pods.mount()
	if err == nil {
		err = reaches(on, m.kubeletDir)
	}
	if err != nil {
		problems = append(problems, err)
	}
	return problems
}

// reaches says why kubelet and pods would not see what is mounted in a mount.
func reaches(on *mountinfo.Info, kubeletDir string) error {
	if on == nil || strings.Contains(on.Optional, "shared:") {
		return nil
	}
	// The machine's first process, if we can see it, is where kubelet is too.
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return fmt.Errorf("looking at the mount namespace: %w", err)
	}
	if first, err := os.Readlink("/proc/1/ns/mnt"); err == nil && first == ours && os.Getpid() != 1 {
		return nil
	}
	return unready("agent.csi.kubelet_dir: what is mounted below %s stays in the agent's container; give its volume mountPropagation: Bidirectional, which needs a privileged container", kubeletDir)
}
