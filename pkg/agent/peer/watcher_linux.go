package peer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// watcher waits for the end of many processes with one epoll descriptor, which
// itself waits in Go's netpoller: no thread, and per process no goroutine.
type watcher struct {
	mu    sync.Mutex
	epoll int // 0 while not running
	procs map[int32]*Process
}

// add begins to watch p; if run has not begun, p is watched from then on.
func (w *watcher) add(p *Process) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.epoll != 0 {
		if err := w.enrol(p); err != nil {
			return err
		}
	}
	if w.procs == nil {
		w.procs = make(map[int32]*Process)
	}
	w.procs[int32(p.fds.pidfd)] = p
	p.watch = w
	return nil
}

// enrol is called with mu held.
func (w *watcher) enrol(p *Process) error {
	fd := p.fds.pidfd
	err := unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	if err != nil {
		return fmt.Errorf("watching process %d: %w", p.pid, err)
	}
	return nil
}

// remove is called before the pidfd is closed.
func (w *watcher) remove(p *Process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fd := p.fds.pidfd
	if w.procs[int32(fd)] != p {
		return
	}
	delete(w.procs, int32(fd))
	if w.epoll != 0 {
		_ = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, fd, nil)
	}
}

func (w *watcher) run(ctx context.Context) error {
	f, err := w.open()
	if err != nil {
		return err
	}
	defer w.close(f)
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("watching processes: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	events := make([]unix.EpollEvent, 64)
	for {
		var n int
		var waitErr error
		err := raw.Read(func(fd uintptr) bool {
			n, waitErr = unix.EpollWait(int(fd), events, 0)
			return n != 0
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(waitErr, unix.EINTR):
			continue
		case errors.Join(err, waitErr) != nil:
			return fmt.Errorf("watching processes: %w", errors.Join(err, waitErr))
		}
		for _, e := range events[:n] {
			w.fired(e.Fd)
		}
	}
}

// open makes the epoll descriptor and enrols who came before.
func (w *watcher) open() (*os.File, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watching processes: %w", err)
	}
	if err := unix.SetNonblock(epoll, true); err != nil { // or os.NewFile keeps it from the netpoller
		return nil, errors.Join(fmt.Errorf("watching processes: %w", err), unix.Close(epoll))
	}
	f := os.NewFile(uintptr(epoll), "pidfds")
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.epoll != 0 {
		return nil, errors.Join(errors.New("watching processes: Run is running already"), f.Close())
	}
	w.epoll = epoll
	for _, p := range w.procs {
		if err := w.enrol(p); err != nil {
			w.epoll = 0
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

func (w *watcher) close(f *os.File) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.epoll = 0
	_ = f.Close()
}

// fired ends the process behind a pidfd, unless the event is an old one and
// the number meanwhile another's.
func (w *watcher) fired(pidfd int32) {
	w.mu.Lock()
	p := w.procs[pidfd]
	w.mu.Unlock()
	if p == nil || !p.fds.acquire() {
		return
	}
	err := p.alive()
	p.fds.release()
	if err != nil {
		p.end(err)
	}
}
