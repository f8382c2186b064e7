package config

import (
	"fmt"
	"strconv"
	"strings"
)

// Errorf is a problem with the value of a key, given as a path such as
// "server.bind_port", at its line. For a key that is not in the file it is the
// line of the section that should have it. A nil File has no lines.
func (f *File) Errorf(key, format string, args ...any) error {
	p := &Problem{Key: key, Err: fmt.Errorf(format, args...)}
	if f == nil {
		return p
	}
	p.File, p.Line = f.name, f.root.find(key)
	if by, ok := f.overrides[strings.ToLower(key)]; ok {
		p.File, p.Line = by, 0
	}
	return p
}

// Override says that the value of a key comes from elsewhere than the file,
// such as the flag "-serverPort"; problems with it then name that.
func (f *File) Override(key, by string) {
	if f.overrides == nil {
		f.overrides = make(map[string]string)
	}
	f.overrides[strings.ToLower(key)] = by
}

// find is the line of a key, or of the innermost section on the way there that
// is in the file; 0 when not even the first is.
func (v *value) find(key string) int {
	line, _ := v.follow(key)
	return line
}

// follow also returns what of the key was not found.
func (v *value) follow(key string) (line int, missing string) {
	missing = key
	objects, ok := v.objects()
	if !ok || key == "" {
		return 0, key
	}
	for _, st := range steps(objects, key) {
		l, m := st.item.val.follow(st.rest)
		if l == 0 {
			l = st.item.line
		}
		// Sections of one name can be several: the one that leads on counts.
		if line == 0 || len(m) < len(missing) {
			line, missing = l, m
		}
	}
	return line, missing
}

// step is an item that a path begins with, and the rest of the path.
type step struct {
	item item
	rest string
}

// steps finds the items that the path begins with. Keys may have dots in them
// themselves, such as names of trust domains: the longest one counts.
func steps(objects []*value, path string) (found []step) {
	longest := 0
	for _, obj := range objects {
		for _, it := range obj.items {
			n := len(it.key)
			if n < longest || n == 0 || n > len(path) || !strings.EqualFold(it.key, path[:n]) {
				continue
			}
			after, fits := element(&it, path[n:])
			if !fits {
				continue
			}
			if n > longest {
				found, longest = nil, n
			}
			found = append(found, step{it, after})
		}
	}
	return found
}

// element follows the [2] after a key into its list, and takes the dot off.
func element(it *item, path string) (rest string, ok bool) {
	if path == "" {
		return "", true
	}
	if inner, isIndex := strings.CutPrefix(path, "["); isIndex {
		number, after, _ := strings.Cut(inner, "]")
		i, err := strconv.Atoi(number)
		if err != nil {
			return "", false
		}
		e := &value{line: it.line} // nothing: what is below it is not in the file
		if it.val.kind == list && i >= 0 && i < len(it.val.list) {
			e = it.val.list[i]
		}
		it.val, it.line = e, e.line
		path = after
	}
	if path == "" {
		return "", true
	}
	return strings.CutPrefix(path, ".")
}
