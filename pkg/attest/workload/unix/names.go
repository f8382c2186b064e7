package unix

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"sync"
)

// maxNames bounds the remembered answers of one file. Beyond it all are
// forgotten, as the ids of workloads repeat.
const maxNames = 4096

// names answers which name an id has in /etc/passwd or /etc/group, by the
// rules of Go's os/user without cgo. Answers are remembered until the file is
// another one or was changed; that costs one stat(2) per attestation.
type names struct {
	path   string
	fields int // of a valid line, colon separated: name, password, id, …

	mu    sync.Mutex
	file  fileID
	byID  map[uint32]string // "" for an id without a name
	exact bool              // file can be recognised
}

// view is names during one attestation.
type view struct{ n *names }

// open forgets the answers of a file that has changed. A missing file is an
// empty one: minimal containers have none.
func (n *names) open() (view, error) {
	var id fileID
	exact := true
	info, err := os.Stat(n.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return view{}, fmt.Errorf("looking up names: %w", err)
	default:
		id, exact = identify(info)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !exact || !n.exact || id != n.file || n.byID == nil {
		n.file, n.exact, n.byID = id, exact, make(map[uint32]string)
	}
	return view{n}, nil
}

// name returns "" for an id that has none.
func (v view) name(id uint32) (string, error) {
	v.n.mu.Lock()
	defer v.n.mu.Unlock()
	if name, ok := v.n.byID[id]; ok {
		return name, nil
	}
	name, err := v.n.scan(id)
	if err != nil {
		return "", fmt.Errorf("looking up names: %w", err)
	}
	if len(v.n.byID) >= maxNames {
		clear(v.n.byID)
	}
	v.n.byID[id] = name
	return name, nil
}

func (n *names) scan(id uint32) (string, error) {
	f, err := os.Open(n.path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	return findName(f, id, n.fields)
}

// findName returns the first valid line's name. A line longer than the buffer
// (a group with thousands of members) is judged by its beginning, which has
// all the fields that count.
func findName(r io.Reader, id uint32, fields int) (string, error) {
	want := strconv.AppendUint(nil, uint64(id), 10)
	in := bufio.NewReader(r)
	for {
		line, more, err := in.ReadLine()
		if errors.Is(err, io.EOF) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		if name := nameIn(line, want, fields); name != "" {
			return name, nil
		}
		for more && err == nil {
			_, more, err = in.ReadLine()
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
	}
}

// nameIn returns the name if line is valid and of that id. Lines of NIS (+, -)
// and comments name nobody.
func nameIn(line, id []byte, fields int) string {
	line = bytes.TrimSpace(line)
	if len(line) == 0 || line[0] == '#' || bytes.Count(line, []byte{':'}) < fields-1 {
		return ""
	}
	name, rest, _ := bytes.Cut(line, []byte{':'})
	_, rest, _ = bytes.Cut(rest, []byte{':'})
	got, _, _ := bytes.Cut(rest, []byte{':'})
	if len(name) == 0 || name[0] == '+' || name[0] == '-' || !bytes.Equal(got, id) {
		return ""
	}
	return string(name)
}
