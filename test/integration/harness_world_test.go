package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// world is what one story plays in: a folder, and the programs started in it.
type world struct {
	t   *testing.T
	bin programs
	dir string
	td  spiffeid.TrustDomain

	mu      sync.Mutex
	procs   []*process // all that were started, guarded by mu
	secrets []string   // what no log may have, guarded by mu
}

// newWorld makes an empty world; name is short and becomes the trust domain.
func newWorld(t *testing.T, name string) *world {
	t.Helper()
	w := &world{t: t, bin: binaries(t), td: spiffeid.RequireTrustDomainFromString(name + ".test")}
	var err error
	if w.dir, err = os.MkdirTemp(workDir, name+"-"); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(w.dir, 0o711); err != nil {
		t.Fatal(err)
	}
	// Cleanups run last in, first out: this one sees the processes of the
	// world ended, which are killed by cleanups of their own.
	t.Cleanup(w.inspect)
	return w
}

// path is a path in the world's folder.
func (w *world) path(parts ...string) string {
	return filepath.Join(append([]string{w.dir}, parts...)...)
}

// launch starts a program of this world.
func (w *world) launch(name string, cmd *exec.Cmd) *process {
	w.t.Helper()
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	// A world's programs must not find the sockets of another.
	cmd.Env = append(cmd.Env, "SPIRE_SERVER_PRIVATE_SOCKET=", "SPIRE_AGENT_PUBLIC_SOCKET=", "CREDENCE_PERSONA=")
	p := launch(w.t, name, cmd)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.procs = append(w.procs, p)
	return p
}

// secret is remembered; no log may have it.
func (w *world) secret(s string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s != "" {
		w.secrets = append(w.secrets, s)
	}
	return s
}

// inspect is held at the end of each story.
func (w *world) inspect() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.procs {
		text := p.log.String()
		if strings.Contains(text, "DATA RACE") {
			w.t.Errorf("%s: the race detector has something to say", p.name)
		}
		if strings.Contains(text, "panic: ") || strings.Contains(text, "goroutine 1 [") {
			w.t.Errorf("%s: panic", p.name)
		}
		for _, secret := range w.secrets {
			for line := range strings.Lines(text) {
				if strings.Contains(line, secret) {
					w.t.Errorf("%s: its log has the secret %q in the line\n%s", p.name, secret, line)
					break
				}
			}
		}
	}
	if w.t.Failed() {
		for _, p := range w.procs {
			w.t.Logf("--- %s (pid %d) wrote:\n%s", p.name, p.cmd.Process.Pid, tail(p.log.String()))
		}
	}
	if err := os.RemoveAll(w.dir); err != nil {
		w.t.Errorf("removing the story's folder: %v", err)
	}
}

// tail is the end of a long text.
func tail(text string) string {
	const most = 16 << 10
	if len(text) <= most {
		return text
	}
	return "[…]\n" + text[len(text)-most:]
}

var ports = struct {
	sync.Mutex
	taken map[int]bool
}{taken: make(map[int]bool)}

// freePort returns a TCP port of 127.0.0.1 that is free, and stays free while a
// program that had it is restarted: it lies below those that the kernel gives to
// outgoing connections.
func freePort(t *testing.T) int {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	for range 1000 {
		port := 15000 + rand.IntN(15000)
		if ports.taken[port] {
			continue
		}
		ports.taken[port] = true
		lis, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		if err := lis.Close(); err != nil {
			t.Fatal(err)
		}
		return port
	}
	t.Fatal("no free TCP port found")
	return 0
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// dialSocket connects to a gRPC API on a Unix socket, which need not be there
// yet, and may go and come back.
func dialSocket(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: pollPause, Multiplier: 1.2, MaxDelay: 5 * pollPause},
			MinConnectTimeout: time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// bounded is a context for one call.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

var errNotServing = errors.New("not serving")

// healthy waits until the process serves.
func healthy(t *testing.T, p *process, conn *grpc.ClientConn) {
	t.Helper()
	client := grpc_health_v1.NewHealthClient(conn)
	eventually(t, p.name+" is healthy", func() error {
		if !p.running() {
			t.Fatalf("%s ended with exit code %d before it was healthy: %q", p.name, p.cmd.ProcessState.ExitCode(), errorLines(p.log.String()))
		}
		return checkHealth(t, client)
	})
}

func checkHealth(t *testing.T, client grpc_health_v1.HealthClient) error {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	resp, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err == nil && resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		err = fmt.Errorf("%w: %v", errNotServing, resp.GetStatus())
	}
	return err
}

// output is what a command that has ended has to say.
type output struct {
	stdout, stderr string
	code           int
}

// runCommand runs a program to its end. Its output is inspected like a log.
func (w *world) runCommand(cmd *exec.Cmd) output {
	w.t.Helper()
	var out strings.Builder
	p := &process{name: filepath.Base(cmd.Path) + " " + strings.Join(cmd.Args[1:min(3, len(cmd.Args))], " "), cmd: cmd, log: newJournal(), done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &out, p.log
	cmd.SysProcAttr = new(syscall.SysProcAttr)
	bindLife(cmd.SysProcAttr)
	cmd.WaitDelay = stopTime
	err := cmd.Run()
	close(p.done)
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		w.t.Fatalf("%s: %v", p.name, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.procs = append(w.procs, p)
	return output{stdout: out.String(), stderr: p.log.String(), code: cmd.ProcessState.ExitCode()}
}

// command makes a command that is killed when it takes too long.
func (w *world) command(program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(bounded(w.t), program, args...)
	cmd.Env = append(os.Environ(), "SPIRE_SERVER_PRIVATE_SOCKET=", "SPIRE_AGENT_PUBLIC_SOCKET=", "CREDENCE_PERSONA=")
	return cmd
}
