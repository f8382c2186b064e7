package unix

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/attest/workload"
)

const (
	// maxDigests bounds the remembered digests: about 200 bytes each.
	maxDigests = 1024
	// maxHashing bounds the executables hashed at once for one user. Opening
	// and reading can hang for as long as a file server pleases; so a user
	// whose executables hang holds four threads of the agent, and the others
	// of that user wait.
	maxHashing = 4
	// settled is how old a file's last change must be for its digest to be
	// remembered: a file can change twice within one tick of the clock that
	// its ctime is taken from, and look the same.
	settled = 2 * time.Second
)

var errTooLarge = errors.New("executable is larger than workload_size_limit")

// fileID recognises a file and its content: whoever changes the content also
// changes ctime, and nobody but the kernel sets that.
type fileID struct {
	dev, ino     uint64
	size         int64
	mtime, ctime [2]int64 // seconds, nanoseconds
}

// digests calculates and remembers sha256 sums of executables.
type digests struct {
	limit int64 // bytes, 0 for none

	mu      sync.Mutex
	known   map[fileID]string
	hashing map[uint32]*slots
	running sync.WaitGroup
}

// slots are a user's permits to hash. A slots is dropped with its last user.
type slots struct {
	permits chan struct{}
	users   int
}

// of returns the hexadecimal digest of what p runs. It returns when ctx ends,
// also when the file system does not answer.
func (d *digests) of(ctx context.Context, p workload.Process) (string, error) {
	done, err := d.enter(ctx, p.UID())
	if err != nil {
		return "", err
	}
	type result struct {
		sum string
		err error
	}
	answer := make(chan result, 1)
	d.running.Go(func() {
		defer done()
		sum, err := d.hash(ctx, p)
		answer <- result{sum, err}
	})
	select {
	case r := <-answer:
		return r.sum, r.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// enter waits for a permit of the user; done gives it back.
func (d *digests) enter(ctx context.Context, uid uint32) (done func(), err error) {
	d.mu.Lock()
	s := d.hashing[uid]
	if s == nil {
		s = &slots{permits: make(chan struct{}, maxHashing)}
		if d.hashing == nil {
			d.hashing = make(map[uint32]*slots)
		}
		d.hashing[uid] = s
	}
	s.users++
	d.mu.Unlock()
	leave := func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if s.users--; s.users == 0 {
			delete(d.hashing, uid)
		}
	}
	select {
	case s.permits <- struct{}{}:
		return func() { <-s.permits; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("waiting for other executables of the same user: %w", ctx.Err())
	}
}

func (d *digests) hash(ctx context.Context, p workload.Process) (string, error) {
	f, err := p.OpenExe()
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	start := time.Now()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", errors.New("executable is not a regular file")
	}
	if d.limit > 0 && info.Size() > d.limit {
		return "", fmt.Errorf("%w: %d bytes, the limit is %d", errTooLarge, info.Size(), d.limit)
	}
	id, exact := identify(info)
	if exact {
		if sum, ok := d.lookup(id); ok {
			return sum, nil
		}
	}
	sum, err := digest(ctx, f, d.limit)
	if err != nil {
		return "", err
	}
	if exact && cacheable(f, id, start) {
		d.remember(id, sum)
	}
	return sum, nil
}

// digest reads f to its end. The limit counts what is read, not what the file
// said of its size.
func digest(ctx context.Context, f io.Reader, limit int64) (string, error) {
	h := sha256.New()
	buf := make([]byte, 64<<10)
	for read := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := f.Read(buf)
		if read += int64(n); limit > 0 && read > limit {
			return "", fmt.Errorf("%w: it grew beyond %d bytes", errTooLarge, limit)
		}
		h.Write(buf[:n]) // never fails
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
	}
}

// cacheable says whether the file did not change while it was read, and cannot
// change afterwards without showing it.
func cacheable(f fs.File, before fileID, start time.Time) bool {
	info, err := f.Stat()
	if err != nil {
		return false
	}
	after, _ := identify(info)
	changed := time.Unix(before.ctime[0], before.ctime[1])
	return after == before && start.Sub(changed) > settled
}

func (d *digests) lookup(id fileID) (string, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	sum, ok := d.known[id]
	return sum, ok
}

// remember drops an arbitrary digest when full.
func (d *digests) remember(id fileID, sum string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil {
		d.known = make(map[fileID]string)
	}
	for old := range d.known {
		if len(d.known) < maxDigests {
			break
		}
		delete(d.known, old)
	}
	d.known[id] = sum
}
