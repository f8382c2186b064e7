package agent

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// lockDataDir keeps a second agent away from data_dir: two would take the
// server's stream from each other and overwrite each other's key. The lock is
// on the file at path and goes with the process; unlock gives it back earlier.
func lockDataDir(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("agent.data_dir: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		err = errors.Join(err, f.Close())
		return nil, fmt.Errorf("agent.data_dir: another agent is using it (lock on %s: %w); stop that one, or choose another directory", path, err)
	}
	return func() { _ = f.Close() }, nil // Nothing was written that closing could lose.
}
