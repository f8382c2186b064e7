package workload

import (
	"context"
	"io/fs"

	"github.com/credence-id/credence/pkg/attest"
)

// Process is a live process as seen at the time it connected. Its methods
// refuse once the process is gone or is not the one that connected any more.
type Process interface {
	// PID in the agent's PID namespace.
	PID() int32
	// UID and GID are the effective ids the kernel recorded at connect
	// (SO_PEERCRED).
	UID() uint32
	GID() uint32
	// Proc is the process's own /proc/<pid> directory, opened while the
	// process was held by its pidfd. Reads of a process that is gone fail
	// (ESRCH or fs.ErrNotExist) and never show another process.
	Proc() fs.FS
	// ReadLink reads a link below /proc/<pid>, such as "exe".
	ReadLink(name string) (string, error)
	// OpenExe opens the executable the process runs, also when its path was
	// removed or is in another mount namespace.
	OpenExe() (fs.File, error)
}

// Attestor finds out facts about a process.
//
// Attest may be called concurrently. It returns within the context's deadline.
// An attestor that has nothing to say of the process returns no selectors and
// no error. The invalidated channel, when not nil, is closed when the answer
// has changed since (a pod was labelled); the agent then attests again.
// Selector types equal Name.
type Attestor interface {
	// Name is the selector type and the name in the configuration.
	Name() string
	Attest(ctx context.Context, p Process) (selectors attest.Selectors, invalidated <-chan struct{}, err error)
}

// Runner is an Attestor that has work of its own, such as following a watch.
//
// Run does it until ctx ends, and then returns nil; another return is the end of
// the attestor. It is called once. Attest may be called before, during and after
// Run, and then does without what Run would bring, or waits for it.
type Runner interface {
	Attestor
	Run(ctx context.Context) error
}
