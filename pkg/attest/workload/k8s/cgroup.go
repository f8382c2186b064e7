package k8s

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// place is where a process runs, as its cgroups say. The zero place is outside
// of all pods.
type place struct {
	// pod is the UID in the pod's cgroup, with dashes: a UUID, or 32
	// hexadecimal digits for a pod from a file of the kubelet's. Empty beside a
	// container: the cgroup does not name the pod.
	pod string
	// container is the runtime's ID, 64 hexadecimal digits.
	container string
}

var (
	errMalformed = errors.New("malformed")
	// errNoContainer is for a process that somebody with power over the node
	// has put into a pod's cgroup.
	errNoContainer = errors.New("the process is in the cgroup of a pod and in none of its containers'")
	errConflict    = errors.New("its cgroup hierarchies name different containers, so none is believed; only a privileged process can be moved like that")
)

// parseCgroup returns the paths in /proc/<pid>/cgroup (cgroups(7)):
// "id:controllers:path", the path up to the end of the line. The kernel allows
// no line end in the name of a cgroup, so a line ends where it seems to.
func parseCgroup(text []byte) ([]string, error) {
	var paths []string
	for len(text) > 0 {
		line, rest, whole := bytes.Cut(text, []byte{'\n'})
		text = rest
		if !whole {
			return nil, fmt.Errorf("%w: the last line has no end", errMalformed)
		}
		_, line, _ = bytes.Cut(line, []byte{':'})
		_, path, ok := bytes.Cut(line, []byte{':'})
		if !ok || len(path) == 0 || path[0] != '/' {
			return nil, fmt.Errorf("%w: a line is not id:controllers:/path", errMalformed)
		}
		// Hierarchies of version 1 mostly say the same.
		if len(paths) == 0 || paths[len(paths)-1] != string(path) {
			paths = append(paths, string(path))
		}
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("%w: no line", errMalformed)
	}
	return paths, nil
}

// view is where in the cgroup tree this node's pods are, seen from the agent.
// It rests on the agent's own cgroup, which no workload chooses: elsewhere in the
// tree there are places where others make cgroups of any name, such as below a
// systemd user session or in a container that manages cgroups of its own.
type view struct {
	// roots are what stands before the cgroups of pods.
	roots []root
	// relative says that the agent has a cgroup namespace of its own, to which
	// the kernel shows what is outside as /../…; the first name after that is
	// next to a parent of the agent's cgroup, where the runtime, the kubelet or
	// the node's init made it.
	relative bool
}

type root struct {
	segments []string
	// flat: there are no cgroups of pods, only of containers.
	flat bool
}

// newView reads the agent's own cgroup file. inNamespace says whether the agent
// has a cgroup namespace that is not the machine's first.
func newView(own []byte, inNamespace bool) (view, error) {
	paths, err := parseCgroup(own)
	if err != nil {
		return view{}, err
	}
	v := view{relative: inNamespace}
	hidden := inNamespace
	var flat []root
	for _, path := range paths {
		hidden = hidden && path == "/"
		switch r, ok := ownRoot(strings.Split(path[1:], "/")); {
		case ok && r.flat:
			flat = append(flat, r)
		case ok:
			v.roots = append(v.roots, r)
		}
	}
	if len(v.roots) == 0 {
		v.roots = flat // in a hierarchy without pods, the container is the node's
	}
	// An agent outside of pods finds them at the top. One that sees its own
	// cgroup as / has nothing but its own container below that.
	if len(v.roots) == 0 && !hidden {
		v.roots = []root{{}}
	}
	return v, nil
}

// ownRoot is what stands before the agent's own pod. The innermost pod counts:
// around it can be that of a node which is itself a pod of another cluster.
func ownRoot(segments []string) (root, bool) {
	for i := len(segments) - 1; i >= 0; i-- {
		if _, _, ok := podSegment(segments[i]); !ok {
			continue
		}
		if i > 0 && isQoS(segments[i-1]) {
			i--
		}
		return root{segments: segments[:i]}, true
	}
	i := slices.IndexFunc(segments, func(s string) bool { _, ok := containerSegment(s); return ok })
	if i < 0 {
		return root{}, false
	}
	return root{segments: segments[:i], flat: true}, true
}

// locate returns the place that one path names, and false for a path outside of
// all pods. What is nested below a container, whatever its name, is not looked
// at: the outermost pod counts, and only where pods are.
func (v view) locate(path string) (place, bool, error) {
	segments := strings.Split(strings.TrimSuffix(path[1:], " (deleted)"), "/")
	if segments[0] == ".." {
		for len(segments) > 0 && segments[0] == ".." {
			segments = segments[1:]
		}
		if !v.relative {
			return place{}, false, nil
		}
		// The agent's siblings are the other containers of its pod.
		return below(segments, true)
	}
	for _, r := range v.roots {
		if len(segments) < len(r.segments) || !slices.Equal(segments[:len(r.segments)], r.segments) {
			continue
		}
		if at, ok, err := below(segments[len(r.segments):], r.flat); ok || err != nil {
			return at, ok, err
		}
	}
	return place{}, false, nil
}

// below reads [kubepods] [QoS class] pod container, or with flat: container.
func below(segments []string, flat bool) (place, bool, error) {
	for range 2 { // kubelet.slice, kubelet-kubepods.slice
		if len(segments) > 0 && isRoot(segments[0]) {
			segments = segments[1:]
		}
	}
	if len(segments) > 0 && isQoS(segments[0]) {
		segments = segments[1:]
	}
	if len(segments) == 0 {
		return place{}, false, nil
	}
	uid, inside, ok := podSegment(segments[0])
	if !ok {
		id, ok := containerSegment(segments[0])
		if !flat || !ok {
			return place{}, false, nil
		}
		return place{container: id}, true, nil
	}
	if inside == "" && len(segments) > 1 {
		inside = segments[1]
	}
	id, ok := containerSegment(inside)
	if !ok {
		return place{}, false, errNoContainer
	}
	return place{pod: uid, container: id}, true, nil
}

func isRoot(segment string) bool {
	return segment == "kubelet" || segment == "kubelet.slice" || segment == "kubepods" || strings.HasSuffix(segment, "kubepods.slice")
}

// isQoS: pods of the class Guaranteed are not in a cgroup of their class.
func isQoS(segment string) bool {
	for _, class := range [...]string{"burstable", "besteffort"} {
		if segment == class || strings.HasSuffix(segment, "kubepods-"+class+".slice") {
			return true
		}
	}
	return false
}

// podSegment reads the name of a pod's cgroup: pod<UID> of the cgroupfs driver,
// kubepods-burstable-pod<UID, _ for ->.slice of the systemd driver. A runtime
// that is told the one and uses the other joins it with the container's name by
// colons (…slice:cri-containerd:<ID>): inside is what follows the first.
func podSegment(segment string) (uid, inside string, ok bool) {
	if uid, ok = strings.CutPrefix(segment, "pod"); ok {
		uid, ok = podUID(uid)
		return uid, "", ok
	}
	slice, inside, _ := strings.Cut(segment, ":")
	name, ok := strings.CutSuffix(slice, ".slice")
	i := strings.LastIndex(name, "-pod")
	if !ok || i < 0 || !strings.HasSuffix(strings.TrimSuffix(strings.TrimSuffix(name[:i], "-burstable"), "-besteffort"), "kubepods") {
		return "", "", false
	}
	uid, ok = podUID(name[i+len("-pod"):])
	return uid, inside, ok
}

// podUID puts the dashes back that the systemd driver replaces.
func podUID(s string) (string, bool) {
	switch len(s) {
	case 32: // the digest of a manifest
		return s, isHex(s)
	case 36:
		b := []byte(s)
		for _, i := range [...]int{8, 13, 18, 23} {
			if b[i] != '-' && b[i] != '_' {
				return "", false
			}
			b[i] = '-'
		}
		digits := strings.Join(strings.Split(string(b), "-"), "")
		return string(b), len(digits) == 32 && isHex(digits)
	}
	return "", false
}

// containerSegment reads the name of a container's cgroup: the ID, perhaps with
// the runtime's name before it and .scope behind it. CRI-O's conmon watches a
// container from a cgroup beside it.
func containerSegment(segment string) (id string, ok bool) {
	const digits = 64
	segment = strings.TrimSuffix(segment, ".scope")
	if len(segment) < digits {
		return "", false
	}
	runtime, id := segment[:len(segment)-digits], segment[len(segment)-digits:]
	if runtime != "" && !strings.ContainsRune("-_:", rune(runtime[len(runtime)-1])) {
		return "", false
	}
	return id, isHex(id) && !strings.Contains(runtime, "conmon")
}

// isHex: the kubelet and the runtimes write digits in lower case.
func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
