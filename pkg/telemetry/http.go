package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	headerTimeout   = 5 * time.Second
	requestTimeout  = 30 * time.Second
	idleTimeout     = 60 * time.Second
	shutdownTimeout = 3 * time.Second
	maxHeaderBytes  = 16 << 10
)

// Listener is one plain HTTP side listener (metrics or health). It carries no
// secrets and takes no input beyond the request line.
type Listener struct {
	name    string
	address string
	handler http.Handler
	log     *slog.Logger
}

// Run listens on the configured address and serves until ctx ends, then waits
// a few seconds for requests in flight. It returns nil after ctx ended; a busy
// or forbidden port is an error at once.
func (l *Listener) Run(ctx context.Context) error {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", l.address)
	if err != nil {
		return fmt.Errorf("%s listener: %w", l.name, err)
	}
	return l.Serve(ctx, ln)
}

// Serve is Run on a listener that is already open. It closes ln.
func (l *Listener) Serve(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler:           l.handler,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(l.log.Handler(), slog.LevelDebug),
	}
	l.log.Info("listener started", Name, l.name, Address, ln.Addr().String())

	served := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { served <- srv.Serve(ln) })
	select {
	case err := <-served:
		return fmt.Errorf("%s listener: %w", l.name, err)
	case <-ctx.Done():
	}
	// ctx has ended; requests in flight get a short time of their own.
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := srv.Shutdown(grace)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close()
	}
	if end := <-served; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, end)
	}
	if err != nil {
		return fmt.Errorf("stopping %s listener: %w", l.name, err)
	}
	return nil
}
