package bolt_test

import (
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/credence-id/credence/pkg/store/storetest"
)

// opKind is what a process asked of the file system, or told its caller.
type opKind int

const (
	opWrite opKind = iota
	opTruncate
	opCreate
	opLink
	opUnlink
	opSync // of a file or a directory
	opAck
)

// diskOp is one recorded call. Calls that change something are recorded when
// they begin (a crash may find them half done), syncs when they have returned.
type diskOp struct {
	kind opKind
	path string
	to   string // opLink: the new name
	off  int64
	data []byte
	size int64
	upTo int // opSync: how many operations had been recorded when it began
	ack  storetest.Ack
}

const (
	pageSize   = 4096
	sectorSize = 512
)

// inode is a file's content, whatever its names. Its pages are never changed
// in place, so a copy shares them.
type inode struct {
	size  int64
	pages map[int64][]byte // by number; zeros where there is none
}

func (n *inode) clone() *inode { return &inode{n.size, maps.Clone(n.pages)} }

func (n *inode) write(off int64, data []byte) {
	for len(data) > 0 {
		number, in := off/pageSize, off%pageSize
		page := make([]byte, pageSize)
		copy(page, n.pages[number])
		c := copy(page[in:], data)
		n.pages[number] = page
		off, data = off+int64(c), data[c:]
	}
	n.size = max(n.size, off)
}

func (n *inode) truncate(size int64) {
	n.size = size
	maps.DeleteFunc(n.pages, func(number int64, _ []byte) bool { return number*pageSize >= size })
	if page := n.pages[size/pageSize]; page != nil {
		cut := make([]byte, pageSize)
		copy(cut, page[:size%pageSize])
		n.pages[size/pageSize] = cut
	}
}

// disk is what would be found after a crash.
type disk struct {
	inodes map[int]*inode
	names  map[string]int
}

func (d *disk) clone() *disk {
	c := &disk{make(map[int]*inode), maps.Clone(d.names)}
	for id, n := range d.inodes {
		c.inodes[id] = n.clone()
	}
	return c
}

// save writes the files into a directory and returns the names.
func (d *disk) save(t testing.TB, dir string) {
	for name, id := range d.names {
		n := d.inodes[id]
		f, err := os.OpenFile(filepath.Join(dir, filepath.Base(name)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err == nil {
			err = f.Truncate(n.size)
		}
		for number, page := range n.pages {
			if err == nil {
				_, err = f.WriteAt(page[:min(pageSize, n.size-number*pageSize)], number*pageSize)
			}
		}
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// change is a diskOp whose names have been resolved.
type change struct {
	diskOp
	index int
	inode int
}

// apply makes the change; a torn one is cut off after so many bytes.
func (c *change) apply(d *disk, bytes int) {
	switch c.kind {
	case opWrite:
		d.inodes[c.inode].write(c.off, c.data[:min(bytes, len(c.data))])
	case opTruncate:
		d.inodes[c.inode].truncate(c.size)
	case opCreate, opLink:
		d.names[c.to] = c.inode
	case opUnlink:
		delete(d.names, c.path)
	}
}

const whole = 1 << 62

// replayer follows a recording and knows at each step what is on disk for
// certain and what may be.
type replayer struct {
	live    map[string]int // names as the process sees them
	durable *disk
	pending []*change // in order; issued, not synced
	acked   []storetest.Ack
	n       int
}

func newReplayer() *replayer {
	return &replayer{
		live:    make(map[string]int),
		durable: &disk{make(map[int]*inode), make(map[string]int)},
	}
}

// step takes the next operation; it returns false when nothing was done that
// a crash could tell.
func (r *replayer) step(op diskOp) bool {
	c := &change{diskOp: op, index: r.n, inode: r.live[op.path]}
	r.n++
	switch op.kind {
	case opAck:
		r.acked = append(r.acked, op.ack)
		return true
	case opSync:
		return r.sync(c)
	case opCreate:
		if _, there := r.live[op.path]; there {
			return false
		}
		c.inode, c.to = len(r.durable.inodes)+1, op.path
		r.durable.inodes[c.inode] = &inode{pages: make(map[int64][]byte)}
		r.live[op.path] = c.inode
	case opLink:
		r.live[op.to] = c.inode
	case opUnlink:
		delete(r.live, op.path)
	}
	r.pending = append(r.pending, c)
	return true
}

// sync makes durable what was issued for a file, or for the names in a
// directory, before the sync began.
func (r *replayer) sync(s *change) bool {
	before := len(r.pending)
	r.pending = slices.DeleteFunc(r.pending, func(c *change) bool {
		name := c.path
		if c.kind == opCreate || c.kind == opLink {
			name = c.to
		}
		isName := c.kind == opCreate || c.kind == opLink || c.kind == opUnlink
		if c.index >= s.upTo || isName && filepath.Dir(name) != s.path || !isName && (s.inode == 0 || c.inode != s.inode) {
			return false
		}
		c.apply(r.durable, whole)
		return true
	})
	return len(r.pending) < before
}

// image is the disk if of each pending change as many bytes arrived as keep
// says: none (0), some, or whole.
func (r *replayer) image(keep func(c *change, last bool) int) *disk {
	d := r.durable.clone()
	for i, c := range r.pending {
		n := keep(c, i == len(r.pending)-1)
		if n > 0 {
			c.apply(d, n)
		}
	}
	return d
}

// The ways in which a crash treats what was not synced.
var crashes = []struct {
	name string
	keep func(rng *rand.Rand) func(c *change, last bool) int
}{
	{"everything issued", func(*rand.Rand) func(*change, bool) int {
		return func(*change, bool) int { return whole }
	}},
	{"only what was synced", func(*rand.Rand) func(*change, bool) int {
		return func(*change, bool) int { return 0 }
	}},
	{"last write torn", func(rng *rand.Rand) func(*change, bool) int {
		return func(c *change, last bool) int {
			if !last || c.kind != opWrite {
				return whole
			}
			return tear(rng, c)
		}
	}},
	{"any part, in any order", func(rng *rand.Rand) func(*change, bool) int {
		return func(c *change, _ bool) int {
			switch rng.IntN(3) {
			case 0:
				return 0
			case 1:
				return whole
			}
			if c.kind == opWrite {
				return tear(rng, c)
			}
			return whole
		}
	}},
}

// tear cuts a write inside its last page: at a sector's end, or, where a page
// is small, anywhere.
func tear(rng *rand.Rand, c *change) int {
	lastPage := (len(c.data) - 1) / pageSize * pageSize
	if rng.IntN(2) == 0 {
		return lastPage + rng.IntN(128)
	}
	return lastPage + sectorSize*rng.IntN(pageSize/sectorSize)
}
