package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest/workload/unix"
	xunix "golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// The test binary is also the other processes of the tests: TestMain becomes
// one of helpers when the environment says so. Arguments follow the name.
const helperEnv = "CREDENCE_PEER_HELPER"

var helpers = map[string]func(args []string) error{
	"hold":   holdHelper,
	"sleep":  sleepHelper,
	"call":   callHelper,
	"attack": attackHelper,
	"child":  childHelper,
	"pass":   passHelper,
	"serve":  serveHelper,
}

func TestMain(m *testing.M) {
	if line := os.Getenv(helperEnv); line != "" {
		args := strings.Split(line, "\n")
		if err := helpers[args[0]](args[1:]); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// sleepHelper lives until its standard input ends.
func sleepHelper([]string) error {
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// holdHelper SOCKET connects and keeps the connection until its input ends.
func holdHelper(args []string) error {
	c, err := net.Dial("unix", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Println("connected")
	return sleepHelper(nil)
}

// callHelper SOCKET is an honest workload: for each line of input it asks who
// it is.
func callHelper(args []string) error {
	cc, err := grpc.NewClient("unix:"+args[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer cc.Close()
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		fmt.Println(whoAmI(context.Background(), cc))
	}
	return in.Err()
}

// attackHelper SOCKET TARGET connects and, when told, forks a child that keeps
// the socket; then it becomes TARGET, or exits if there is none.
func attackHelper(args []string) error {
	c, err := net.Dial("unix", args[0])
	if err != nil {
		return err
	}
	fmt.Println("connected")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	sock, err := c.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), helperEnv+"=child\n"+args[1])
	child.Stdout, child.ExtraFiles = os.Stdout, []*os.File{sock}
	// The child's own input, so that it can be told when.
	child.Stdin = os.NewFile(3, "child's input")
	if err := child.Start(); err != nil {
		return err
	}
	if args[1] == "" {
		return nil
	}
	return become(args[1])
}

// become makes this process another program, which sleeps.
func become(program string) error {
	if err := os.Setenv(helperEnv, "sleep"); err != nil {
		return err
	}
	return syscall.Exec(program, []string{program}, os.Environ())
}

// childHelper TARGET has a connection that its parent made. It waits for its
// parent to have become TARGET, and for a line, and asks who it is.
func childHelper(args []string) error {
	parent := os.Getppid()
	fmt.Println("forked")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	if args[0] != "" && os.Getppid() != parent {
		return errors.New("the parent is gone")
	}
	cc, err := overFile(os.NewFile(3, "socket"))
	if err != nil {
		return err
	}
	defer cc.Close()
	fmt.Println(whoAmI(context.Background(), cc))
	return nil
}

// passHelper SOCKET TO TARGET connects to SOCKET and gives the connection away
// over the socket TO. When told, it becomes TARGET, or exits if there is none.
func passHelper(args []string) error {
	c, err := net.Dial("unix", args[0])
	if err != nil {
		return err
	}
	to, err := net.Dial("unix", args[1])
	if err != nil {
		return err
	}
	sock, err := c.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	if _, _, err := to.(*net.UnixConn).WriteMsgUnix([]byte("x"), xunix.UnixRights(int(sock.Fd())), nil); err != nil {
		return err
	}
	fmt.Println("passed")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	if args[2] == "" {
		return nil
	}
	return become(args[2])
}

// serveHelper SOCKET MODE is an agent of its own: "path" attests executables
// too, "proc" first mounts the /proc of its PID namespace, "bare" asks nobody
// who they are.
func serveHelper(args []string) error {
	if strings.Contains(args[1], "proc") {
		if err := xunix.Mount("", "/", "", xunix.MS_REC|xunix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := xunix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
			return err
		}
	}
	l, err := net.Listen("unix", args[0])
	if err != nil {
		return err
	}
	if err := os.Chmod(args[0], 0o777); err != nil {
		return err
	}
	a := newAgent(unix.Config{DiscoverWorkloadPath: strings.Contains(args[1], "path"), WorkloadSizeLimit: -1})
	if args[1] == "bare" {
		a.server = grpc.NewServer()
		healthpb.RegisterHealthServer(a.server, health.NewServer())
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.creds.Run(ctx); err != nil {
			panic(err)
		}
	})
	wg.Go(func() {
		if err := a.server.Serve(a.creds.Listener(l)); err != nil {
			panic(err)
		}
	})
	fmt.Println("serving")
	err = sleepHelper(nil)
	a.server.Stop()
	cancel()
	wg.Wait()
	return err
}

// agent is the least an agent does: attest each RPC, check, answer.
type agent struct {
	creds    *Credentials
	server   *grpc.Server
	attestor *unix.Attestor

	attested func() // called between attestation and check, if set

	mu      sync.Mutex
	granted []string // each identity given away
	refused []error
}

func newAgent(cfg unix.Config) *agent { return newAgentWith(cfg, Config{}) }

func newAgentWith(cfg unix.Config, creds Config) *agent {
	a := &agent{creds: NewCredentials(creds), attestor: unix.New(cfg)}
	a.server = grpc.NewServer(grpc.Creds(a.creds), grpc.UnaryInterceptor(a.attest), grpc.MaxConcurrentStreams(100))
	healthpb.RegisterHealthServer(a.server, health.NewServer())
	return a
}

func (a *agent) attest(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	identity, err := a.identity(ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.refused = append(a.refused, err)
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	a.granted = append(a.granted, identity)
	if err := grpc.SetHeader(ctx, metadata.Pairs("identity", identity)); err != nil {
		return nil, err
	}
	return handle(ctx, req)
}

func (a *agent) identity(ctx context.Context) (string, error) {
	p, err := FromContext(ctx)
	if err != nil {
		return "", err
	}
	found, _, err := a.attestor.Attest(ctx, p)
	if err != nil {
		return "", err
	}
	if a.attested != nil {
		a.attested()
	}
	if err := p.Check(); err != nil {
		return "", err
	}
	var out []string
	for _, s := range found {
		if kind, _, _ := strings.Cut(s.Value, ":"); kind == "uid" || kind == "path" {
			out = append(out, s.Value)
		}
	}
	return strings.Join(out, " "), nil
}

// whoAmI asks the agent behind cc, and says "identity …" or "refused …".
func whoAmI(ctx context.Context, cc *grpc.ClientConn) string {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var header metadata.MD
	if _, err := healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.Header(&header)); err != nil {
		return "refused " + strings.ReplaceAll(err.Error(), "\n", " ")
	}
	return "identity " + strings.Join(header.Get("identity"), " ")
}

// overFile is a client on a connection that is there already, and only on it.
func overFile(f *os.File) (*grpc.ClientConn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	_ = f.Close()
	dialled := false
	return grpc.NewClient("passthrough:///inherited",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if dialled {
				return nil, errors.New("the connection is used up")
			}
			dialled = true
			return c, nil
		}))
}

// start serves until the test ends and returns the socket. The credentials'
// Run is the test's to start.
func (a *agent) start(t *testing.T, wrap func(net.Listener) net.Listener) string {
	t.Helper()
	path := filepath.Join(publicDir(t), "api.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if wrap != nil {
		l = wrap(l)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.server.Serve(a.creds.Listener(l)); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(func() { a.server.Stop(); wg.Wait() })
	return path
}

// run runs the credentials' Run until the test ends.
func run(t *testing.T, c *Credentials) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// publicDir is a short path that every user may enter.
func publicDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "peer")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// copyBinary copies the test binary, with the given mode.
func copyBinary(t testing.TB, name string, mode os.FileMode) string {
	t.Helper()
	in, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	path := filepath.Join(publicDir(t), name)
	// A fork meanwhile would inherit the descriptor, and the program could not
	// be run while that child holds it.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(out.Close(), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
	return path
}

// helper is another process of a test.
type helper struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	child io.WriteCloser // the input of an attacker's child
	lines chan string
}

// helperOptions say how to start it.
type helperOptions struct {
	binary string
	attr   syscall.SysProcAttr
}

func startHelper(t testing.TB, o helperOptions, args ...string) *helper {
	t.Helper()
	if o.binary == "" {
		o.binary = "/proc/self/exe"
	}
	cmd := exec.Command(o.binary)
	cmd.Env = append(os.Environ(), helperEnv+"="+strings.Join(args, "\n"))
	cmd.SysProcAttr = &o.attr
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	childIn, child, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, stdout, err := os.Pipe() // not StdoutPipe: Wait would wait for grandchildren too
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.ExtraFiles = stdout, []*os.File{childIn}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = stdout.Close(), childIn.Close()
	h := &helper{cmd: cmd, stdin: stdin, child: child, lines: make(chan string, 100)}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(h.lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			h.lines <- in.Text()
		}
	})
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = child.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // an error if the test has waited already
		wg.Wait()
		_ = out.Close()
	})
	return h
}

// next returns the next line the helper, or its child, prints.
func (h *helper) next(t testing.TB) string {
	t.Helper()
	select {
	case line, ok := <-h.lines:
		if !ok {
			t.Fatal("the helper has ended")
		}
		return line
	case <-time.After(30 * time.Second):
		t.Fatal("the helper says nothing")
	}
	return ""
}

func (h *helper) expect(t testing.TB, want string) {
	t.Helper()
	if got := h.next(t); got != want {
		t.Fatalf("the helper says %q, want %q", got, want)
	}
}

func tell(t testing.TB, w io.Writer) {
	t.Helper()
	if _, err := io.WriteString(w, "go\n"); err != nil {
		t.Fatal(err)
	}
}

func (h *helper) pid() int { return h.cmd.Process.Pid }

// eventually waits for what another process does.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
	}
}

func needRoot(t testing.TB, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("needs root: %s", why)
	}
}
