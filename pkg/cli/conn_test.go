package cli

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// connTo is a connection to the socket at path, for a program of either name.
func connTo(t *testing.T, path string, spire bool) *Conn {
	t.Helper()
	flags := pflag.NewFlagSet("x", pflag.ContinueOnError)
	s := ServerSocket(flags, Persona{SPIRE: spire})
	if err := flags.Parse([]string{"--socketPath", path}); err != nil {
		t.Fatal(err)
	}
	c, err := s.Conn()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func ask(ctx context.Context, c *Conn) error {
	if _, err := grpc_health_v1.NewHealthClient(c).Check(ctx, &grpc_health_v1.HealthCheckRequest{}); err != nil {
		return err
	}
	stream, err := grpc_health_v1.NewHealthClient(c).Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

func TestConn(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "api.sock")
	ours, theirs := connTo(t, path, false), connTo(t, path, true)
	connTo(t, path, false) // Closed without a call.

	// The socket is looked for at the first call, and its absence is explained in
	// each program's way.
	err := ask(t.Context(), ours)
	if _, ok := errors.AsType[*hinted](err); !ok || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no socket, as ourselves: %v", err)
	}
	err = ask(t.Context(), theirs)
	const spires = `connection error: desc = "transport: Error while dialing: dial unix //`
	if status.Code(err) != codes.Unavailable || !strings.HasPrefix(status.Convert(err).Message(), spires) {
		t.Errorf("no socket, as SPIRE: %v", err)
	}

	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(srv, health.NewServer())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Serve(ln); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	defer wg.Wait()
	defer srv.Stop()
	for name, c := range map[string]*Conn{"as ourselves": ours, "as SPIRE": connTo(t, path, true)} {
		if err := ask(t.Context(), c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConfigError(t *testing.T) {
	t.Parallel()
	other := errors.New("line 1: what is this")
	if err := ConfigError("x", other); !errors.Is(err, other) {
		t.Errorf("another error became %v", err)
	}
	full, err := filepath.Abs("x")
	if err != nil {
		t.Fatal(err)
	}
	if err := ConfigError("x", fs.ErrNotExist); err.Error() != "could not find config file "+full+": please use the -config flag" {
		t.Errorf("got %v", err)
	}
}
