package peers

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

const (
	patience  = 40 * time.Second
	stopTime  = 15 * time.Second
	pollPause = 20 * time.Millisecond
)

// testTD is the trust domain of every story.
var testTD = spiffeid.RequireTrustDomainFromString("example.org")

// side is one server with its agents, ours or SPIRE's. What both can be
// configured with is written once.
type side struct {
	t    *testing.T
	bin  programs
	dir  string
	port int
	proc *process
	// local is the connection to the private socket.
	local *grpc.ClientConn
}

// newSide makes a folder with a configuration for a server, and starts nothing.
// The settings are lines of the section server.
func newSide(t *testing.T, bin programs, settings ...string) *side {
	t.Helper()
	dir, err := os.MkdirTemp(workDir, bin.name+"-")
	if err != nil {
		t.Fatal(err)
	}
	s := &side{t: t, bin: bin, dir: dir, port: freePort(t)}
	store := `DataStore "bolt" { plugin_data {} }`
	if bin.name == "spire" {
		store = fmt.Sprintf(`DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = %q } }`, s.path("data", "datastore.sqlite3"))
	}
	s.write("server.conf", fmt.Sprintf(`
server {
	trust_domain = %q
	data_dir = %q
	bind_address = "127.0.0.1"
	bind_port = %d
	socket_path = %q
	log_level = "DEBUG"
	%s
}
plugins {
	%s
	KeyManager "disk" { plugin_data { keys_path = %q } }
	NodeAttestor "join_token" { plugin_data {} }
}
`, testTD.Name(), s.path("data"), s.port, s.socket(), strings.Join(settings, "\n\t"), store, s.path("keys.json")))
	s.local = dialSocket(t, s.socket())
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return s
}

// startSide makes and starts a server.
func startSide(t *testing.T, bin programs, settings ...string) *side {
	t.Helper()
	s := newSide(t, bin, settings...)
	s.start()
	return s
}

func (s *side) start() {
	s.t.Helper()
	s.proc = launch(s.t, s.bin.name+" server", exec.Command(s.bin.server(), "run", "-config", s.path("server.conf")))
	healthy(s.t, s.proc, s.local)
}

func (s *side) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}
func (s *side) socket() string { return s.path("private", "api.sock") }

func (s *side) write(name, text string) {
	s.t.Helper()
	if err := os.MkdirAll(s.path("data"), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// tcp connects to the server as a node does; without a certificate as anyone.
func (s *side) tcp(certificate *tls.Certificate) *grpc.ClientConn {
	s.t.Helper()
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true} // what is tested is the server's half
	if certificate != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
	}
	conn, err := grpc.NewClient(net.JoinHostPort("127.0.0.1", fmt.Sprint(s.port)), grpc.WithTransportCredentials(credentials.NewTLS(conf)))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// output is what a command that has ended has to say.
type output struct {
	stdout, stderr string
	code           int
}

// runCommand runs a program to its end.
func runCommand(t *testing.T, file string, args ...string) output {
	t.Helper()
	cmd := exec.CommandContext(bounded(t), file, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = environment()
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatalf("%s %s: %v", file, strings.Join(args, " "), err)
	}
	return output{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// environment has none of the variables that name sockets of others.
func environment() []string {
	return append(os.Environ(), "SPIRE_SERVER_PRIVATE_SOCKET=", "SPIRE_AGENT_PUBLIC_SOCKET=", "CREDENCE_PERSONA=")
}

// journal is everything a process has written to stdout and stderr.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write is io.Writer.
func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// process is a running program.
type process struct {
	name string
	cmd  *exec.Cmd
	log  journal
	done chan struct{} // closed when it has ended
}

// launch starts a program, which ends with the test at the latest.
func launch(t *testing.T, name string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{name: name, cmd: cmd, done: make(chan struct{})}
	if cmd.Env == nil {
		cmd.Env = environment()
	}
	cmd.Stdout, cmd.Stderr = &p.log, &p.log
	cmd.WaitDelay = stopTime
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting %s: %v", name, err)
	}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // ProcessState has what matters
	}()
	t.Cleanup(func() {
		if !p.end(syscall.SIGKILL) {
			t.Errorf("%s survived SIGKILL", name)
		}
		if text := p.log.String(); t.Failed() {
			t.Logf("--- %s wrote:\n%s", name, text[max(0, len(text)-12<<10):])
		}
	})
	return p
}

// end sends a signal and waits for the process to be gone; false: it is not.
func (p *process) end(sig os.Signal) bool {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return false
	}
	select {
	case <-p.done:
		return true
	case <-time.After(stopTime):
		return false
	}
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// bounded is a context for one call.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until check returns nil.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %v: %v", what, patience, err)
		}
		time.Sleep(pollPause)
	}
}

var errNotServing = errors.New("not serving")

func healthy(t *testing.T, p *process, conn *grpc.ClientConn) {
	t.Helper()
	eventually(t, p.name+" is healthy", func() error {
		if !p.running() {
			t.Fatalf("%s ended before it was healthy:\n%s", p.name, p.log.String())
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err == nil && resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			err = errNotServing
		}
		return err
	})
}

// dialSocket connects to a Unix socket that need not be there yet.
func dialSocket(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: pollPause, Multiplier: 1.2, MaxDelay: 10 * pollPause},
			MinConnectTimeout: time.Second,
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// freePort returns a TCP port of 127.0.0.1 that is free, below those that the
// kernel gives to outgoing connections.
func freePort(t *testing.T) int {
	t.Helper()
	for range 1000 {
		port := 12000 + rand.IntN(3000)
		lis, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", fmt.Sprint(port)))
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
