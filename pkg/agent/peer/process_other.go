//go:build !linux

package peer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"

	"github.com/credence-id/credence/pkg/attest/workload"
)

var errNotLinux = fmt.Errorf("finding out who connected needs Linux: %w", errors.ErrUnsupported)

// Process does not exist on this system: nothing makes one.
type Process struct{ onEnd func() }

var _ workload.Process = (*Process)(nil)

// Open refuses with errors.ErrUnsupported.
func Open(int32) (*Process, error) { return nil, errNotLinux }

// Check refuses.
func (*Process) Check() error { return errNotLinux }

// Done is never closed.
func (*Process) Done() <-chan struct{} { return nil }

// Close does nothing.
func (*Process) Close() {}

// PID is 0.
func (*Process) PID() int32 { return 0 }

// UID is nobody's.
func (*Process) UID() uint32 { return ^uint32(0) }

// GID is nobody's.
func (*Process) GID() uint32 { return ^uint32(0) }

// Proc refuses every read.
func (*Process) Proc() fs.FS { return noFS{} }

// ReadLink refuses.
func (*Process) ReadLink(string) (string, error) { return "", errNotLinux }

// OpenExe refuses.
func (*Process) OpenExe() (fs.File, error) { return nil, errNotLinux }

type noFS struct{}

func (noFS) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: errNotLinux}
}

func probeSocket(net.Conn) (*Process, error) { return nil, errNotLinux }

type watcher struct{}

func (*watcher) add(*Process) error { return nil }

func (*watcher) run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
