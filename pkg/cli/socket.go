package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	maxMessage    = 64 << 20 // bytes of one answer: SPIRE's servers page late
	maxSocketPath = 107      // bytes, sun_path of unix(7) without its zero
)

// Socket is the flags that say which socket a command talks to.
type Socket struct {
	flags          *pflag.FlagSet
	path, instance string
	fallback       string // the persona's default
	variable       string // SPIRE's environment variable for it
	getenv         func(string) string
	spire          bool
	asAgent        bool // SPIRE's agent names the path as it is in its errors
}

// ServerSocket adds the flags -socketPath and -instance for the server's admin
// socket to flags.
func ServerSocket(flags *pflag.FlagSet, p Persona) *Socket {
	return newSocket(flags, p, p.ServerSocket(), "SPIRE_SERVER_PRIVATE_SOCKET")
}

// AgentSocket adds the flags -socketPath and -instance for the agent's
// Workload API socket to flags.
func AgentSocket(flags *pflag.FlagSet, p Persona) *Socket {
	s := newSocket(flags, p, p.AgentSocket(), "SPIRE_AGENT_PUBLIC_SOCKET")
	s.asAgent = true
	return s
}

// AgentAdminSocket adds the flag -socketPath for the agent's admin socket to
// flags.
func AgentAdminSocket(flags *pflag.FlagSet, p Persona) *Socket {
	s := &Socket{flags: flags, fallback: p.AgentAdminSocket(), getenv: p.env, spire: p.SPIRE}
	flags.StringVar(&s.path, "socketPath", s.fallback, "path of the agent's admin socket, which is agent.admin_socket_path")
	return s
}

func newSocket(flags *pflag.FlagSet, p Persona, fallback, variable string) *Socket {
	s := &Socket{flags: flags, fallback: fallback, variable: variable, getenv: p.env, spire: p.SPIRE}
	flags.StringVar(&s.path, "socketPath", fallback, "path of the socket (env "+variable+")")
	flags.StringVar(&s.instance, "instance", "", "name that replaces %i in the socket template (env "+variable+"_TEMPLATE)")
	return s
}

// Path is the socket asked for: by -socketPath, else by -instance and the
// template, else by the environment, else the default.
func (s *Socket) Path() (string, error) {
	template := s.getenv(s.variable + "_TEMPLATE")
	hint := fmt.Sprintf("export %s_TEMPLATE=/run/credence/%%i/api.sock, or use -socketPath", s.variable)
	switch {
	case s.instance != "" && template == "":
		return "", Hint(fmt.Errorf("you must define %s_TEMPLATE to use the instance flag", s.variable), hint)
	case s.instance != "" && !strings.Contains(template, "%i"):
		return "", Hint(fmt.Errorf("failed to find %%i in %s_TEMPLATE", s.variable), hint)
	case s.flags.Changed("socketPath"):
		return s.path, nil
	case s.instance != "":
		return strings.ReplaceAll(template, "%i", s.instance), nil
	}
	if path := s.getenv(s.variable); s.variable != "" && path != "" {
		return path, nil
	}
	return s.fallback, nil
}

// Dial connects to the Unix socket at path, without TLS. Unlike a plain gRPC
// client it tries at once: no socket, nobody listening and no permission are
// errors with a hint. The caller closes the connection.
func Dial(ctx context.Context, path string) (*grpc.ClientConn, error) {
	path = strings.TrimPrefix(path, "unix://")
	path = strings.TrimPrefix(path, "unix:")
	first, err := dialUnix(ctx, path)
	if err != nil {
		return nil, explain(path, err)
	}
	// The first connection is the one just made; a later one is made anew.
	var mu sync.Mutex
	dialer := func(ctx context.Context, _ string) (net.Conn, error) {
		mu.Lock()
		conn := first
		first = nil
		mu.Unlock()
		if conn != nil {
			return conn, nil
		}
		return dialUnix(ctx, path)
	}
	cc, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(dialer),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return nil, errors.Join(err, first.Close())
	}
	cc.Connect() // Takes the first connection over, so that closing cc closes it.
	return cc, nil
}

func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}

func explain(path string, err error) error {
	wrapped := func(problem string) error { return fmt.Errorf("%s %s: %w", problem, path, err) }
	switch {
	case len(path) > maxSocketPath:
		return Hint(wrapped("connecting to"), fmt.Sprintf("a socket path has at most %d bytes, this one has %d", maxSocketPath, len(path)))
	case errors.Is(err, fs.ErrNotExist):
		return Hint(wrapped("no socket at"), "start the server or agent first, or name its socket with -socketPath")
	case errors.Is(err, syscall.ECONNREFUSED):
		return Hint(wrapped("nobody listens on"), "the process that made the socket has stopped; start it again")
	case errors.Is(err, fs.ErrPermission):
		return Hint(wrapped("no access to"), "use the user or group that owns the socket and its folder, or root")
	}
	return wrapped("connecting to")
}
