package k8s

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"

	"github.com/credence-id/credence/pkg/attest/workload"
	"github.com/credence-id/credence/pkg/telemetry"
)

// firstCgroupNS is the cgroup namespace a machine starts with
// (PROC_CGROUP_INIT_INO in the kernel's include/linux/proc_ns.h).
const firstCgroupNS = "cgroup:[4026531835]"

// locator finds the place of a process.
type locator struct {
	view view
	// userNS is the agent's user namespace, as /proc/self/ns/user says it;
	// empty: not known, and then no mountinfo is believed.
	userNS string
	log    *slog.Logger // nil: not verbose
}

// newLocator looks at the agent itself.
func newLocator() (locator, error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return locator{}, fmt.Errorf("reading the agent's own cgroup: %w", err)
	}
	ns, err := os.Readlink("/proc/self/ns/cgroup")
	if err != nil {
		return locator{}, fmt.Errorf("reading the agent's own cgroup namespace: %w", err)
	}
	v, err := newView(own, ns != firstCgroupNS)
	if err != nil {
		return locator{}, fmt.Errorf("reading the agent's own cgroup: %w", err)
	}
	user, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		user = ""
	}
	return locator{view: v, userNS: user}, nil
}

// find returns the zero place for a process outside of all pods.
func (l locator) find(ctx context.Context, p workload.Process) (place, error) {
	text, err := fs.ReadFile(p.Proc(), "cgroup")
	if err != nil {
		return place{}, fmt.Errorf("reading the cgroup: %w", err)
	}
	paths, err := parseCgroup(text)
	if err != nil {
		return place{}, fmt.Errorf("reading the cgroup: %w", err)
	}
	l.show(ctx, p, "a cgroup of a process", paths)
	at, err := l.merge(paths)
	if err != nil || at != (place{}) {
		return at, err
	}
	for _, path := range paths {
		if path != "/" {
			return place{}, nil
		}
	}
	return l.findMounted(ctx, p)
}

// merge is the place that all paths agree on. Those outside of pods do not
// count: a runtime leaves alone the hierarchies that it has no use for.
func (l locator) merge(paths []string) (place, error) {
	var at place
	for _, path := range paths {
		one, ok, err := l.view.locate(path)
		switch {
		case err != nil:
			return place{}, err
		case !ok:
		case at == (place{}):
			at = one
		case at.container != one.container, at.pod != "" && one.pod != "" && at.pod != one.pod:
			return place{}, errConflict
		case at.pod == "":
			at.pod = one.pod
		}
	}
	return at, nil
}

// findMounted is for a process of whose cgroup the kernel shows nothing but /.
// It goes by the cgroup file systems that the runtime mounted into its
// container. Whoever may mount can change these, and in a user namespace of
// their own anyone may; so only processes of the agent's user namespace are
// believed, where it takes CAP_SYS_ADMIN.
func (l locator) findMounted(ctx context.Context, p workload.Process) (place, error) {
	text, err := fs.ReadFile(p.Proc(), "mountinfo")
	if err != nil {
		return place{}, fmt.Errorf("reading the mounts: %w", err)
	}
	roots, err := parseMountInfo(text)
	if err != nil {
		return place{}, fmt.Errorf("reading the mounts: %w", err)
	}
	l.show(ctx, p, "a mounted cgroup of a process", roots)
	var named []string
	for _, root := range roots {
		if _, ok, err := l.view.locate(root); ok && err == nil {
			named = append(named, root)
		}
	}
	if len(named) == 0 {
		return place{}, nil
	}
	ns, err := p.ReadLink("ns/user")
	if err != nil {
		return place{}, fmt.Errorf("reading the user namespace: %w", err)
	}
	if ns != l.userNS || l.userNS == "" {
		return place{}, nil
	}
	return l.merge(named)
}

func (l locator) show(ctx context.Context, p workload.Process, message string, paths []string) {
	if l.log == nil {
		return
	}
	for _, path := range paths {
		l.log.DebugContext(ctx, message, telemetry.PeerPID, p.PID(), telemetry.Path, path) //nolint:sloglint // both messages are constants of this file
	}
}

// parseMountInfo returns the roots of the cgroup file systems in
// /proc/<pid>/mountinfo (proc(5)), but for those that are mounted whole. Fields
// are between single blanks, and one of them, the source, can be empty.
func parseMountInfo(text []byte) ([]string, error) {
	var roots []string
	for len(text) > 0 {
		line, rest, whole := bytes.Cut(text, []byte{'\n'})
		text = rest
		if !whole {
			return nil, fmt.Errorf("%w: the last line has no end", errMalformed)
		}
		// Most lines are other file systems, and there can be thousands.
		before, after, ok := bytes.Cut(line, []byte(" - "))
		if !ok || bytes.Count(before, []byte{' '}) < 5 {
			return nil, fmt.Errorf("%w: a line is not of mountinfo", errMalformed)
		}
		kind, _, _ := bytes.Cut(after, []byte{' '})
		if string(kind) != "cgroup" && string(kind) != "cgroup2" {
			continue
		}
		root := unescape(string(bytes.SplitN(before, []byte{' '}, 5)[3]))
		if root != "" && root[0] == '/' && root != "/" {
			roots = append(roots, root)
		}
	}
	return roots, nil
}

// unescape undoes the octal escapes of blanks, tabs, line ends and backslashes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
