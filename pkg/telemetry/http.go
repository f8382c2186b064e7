package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/credence-id/credence/pkg/connlimit"
)

const (
	headerTimeout   = 5 * time.Second
	requestTimeout  = 30 * time.Second
	idleTimeout     = 60 * time.Second
	shutdownTimeout = 3 * time.Second
	maxHeaderBytes  = 16 << 10
	// maxConns is how many connections may be open: whoever scrapes or probes
	// needs one, for a moment. The oldest makes room once it is connGrace old.
	maxConns  = 128
	connGrace = time.Second
)

// Listener is one plain HTTP side listener (metrics or health). It carries no
// secrets and takes no input beyond the request line.
type Listener struct {
	name    string
	handler http.Handler
	log     *slog.Logger
}

// listen opens the TCP address that a section of the configuration file asks
// for. The error names the file's key of the port or of the host.
func listen(ctx context.Context, host, port, hostKey, portKey string) (net.Listener, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(host, port))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%s: port %s is in use at %s: stop the other process, or choose another port: %w", portKey, port, host, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%s: port %s needs rights that this process does not have: choose a port above 1023: %w", portKey, port, err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", hostKey, err)
	}
	return ln, nil
}

// Serve serves on ln, which [HealthConfig.Listen] or [Config.ListenMetrics]
// opened, until ctx ends, then waits a few seconds for requests in flight and
// returns nil. It closes ln.
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
	wg.Go(func() { served <- srv.Serve(connlimit.Listen(ln, maxConns, connGrace)) })
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
