package workloadtest

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"sync/atomic"
	"syscall"
	"testing/fstest"

	"github.com/credence-id/credence/pkg/attest/workload"
)

// Process is a process made of a map. The zero value is a process of root with
// nothing in /proc. Do not change its fields once an attestor has it.
type Process struct {
	ID         int32
	User       uint32
	Group      uint32
	Files      fstest.MapFS      // below /proc/<pid>
	Links      map[string]string // below /proc/<pid>
	Executable []byte

	// dieAfter is how many accesses succeed; all do if it is negative or 0.
	dies     bool
	dieAfter int64
	accesses atomic.Int64
	stall    context.Context // if set, the executable is not readable until it ends
}

var _ workload.Process = (*Process)(nil)

// Clone returns a living process with the same facts.
func (p *Process) Clone() *Process {
	return &Process{ID: p.ID, User: p.User, Group: p.Group, Files: p.Files, Links: p.Links, Executable: p.Executable}
}

// DieAfter returns a clone that is gone after n accesses to what /proc says.
func (p *Process) DieAfter(n int) *Process {
	c := p.Clone()
	c.dies, c.dieAfter = true, int64(n)
	return c
}

// Stall returns a clone whose executable is on a file system that does not
// answer until ctx ends.
func (p *Process) Stall(ctx context.Context) *Process {
	c := p.Clone()
	c.stall = ctx
	return c
}

// Accesses counts what was read, or tried.
func (p *Process) Accesses() int { return int(p.accesses.Load()) }

func (p *Process) access(op, name string) error {
	if n := p.accesses.Add(1); p.dies && n > p.dieAfter {
		return &fs.PathError{Op: op, Path: name, Err: syscall.ESRCH}
	}
	return nil
}

// PID implements workload.Process.
func (p *Process) PID() int32 { return p.ID }

// UID implements workload.Process.
func (p *Process) UID() uint32 { return p.User }

// GID implements workload.Process.
func (p *Process) GID() uint32 { return p.Group }

// Proc implements workload.Process.
func (p *Process) Proc() fs.FS { return procFS{p} }

type procFS struct{ p *Process }

func (f procFS) Open(name string) (fs.File, error) {
	if err := f.p.access("open", name); err != nil {
		return nil, err
	}
	return f.p.Files.Open(name)
}

// ReadLink implements workload.Process.
func (p *Process) ReadLink(name string) (string, error) {
	if err := p.access("readlink", name); err != nil {
		return "", err
	}
	target, ok := p.Links[name]
	if !ok {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrNotExist}
	}
	return target, nil
}

// OpenExe implements workload.Process.
func (p *Process) OpenExe() (fs.File, error) {
	if err := p.access("open", "exe"); err != nil {
		return nil, err
	}
	f, err := fstest.MapFS{"exe": {Data: p.Executable, Mode: 0o755}}.Open("exe")
	if err != nil {
		return nil, err
	}
	return &executable{File: f, stall: p.stall, rest: bytes.NewReader(p.Executable)}, nil
}

// executable can stall as a file on a network does: in read(2), which no
// context ends.
type executable struct {
	fs.File
	stall context.Context
	rest  *bytes.Reader
}

func (e *executable) Read(b []byte) (int, error) {
	if e.stall != nil {
		<-e.stall.Done()
		return 0, io.ErrUnexpectedEOF
	}
	return e.rest.Read(b)
}
