package integration

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// A test binary that is started with this variable is a workload, in the role
// that the variable names. It takes its settings from the environment, writes
// events as JSON lines, and ends in order when its stdin is closed.
const roleVariable = "CREDENCE_TEST_ROLE"

const (
	socketVariable = "CREDENCE_TEST_SOCKET"
	peerVariable   = "CREDENCE_TEST_PEER"    // SPIFFE ID of the other end
	dialVariable   = "CREDENCE_TEST_ADDRESS" // for the client
	argsVariable   = "CREDENCE_TEST_ARGS"    // made arguments by play
)

// event is one line of a role's output.
type event struct {
	Kind string `json:"kind"` // listening, rotated, failed, traffic, done

	Address   string `json:"address,omitempty"`
	ID        string `json:"id,omitempty"`
	UID       int    `json:"uid"`
	Serial    string `json:"serial,omitempty"`
	Authority string `json:"authority,omitempty"` // that signed
	Error     string `json:"error,omitempty"`
	Count     int    `json:"count,omitempty"` // handshakes so far
}

// role is a workload process.
type role struct {
	mu  sync.Mutex
	out *json.Encoder

	source *workloadapi.X509Source
	peer   spiffeid.ID
	count  int // guarded by mu
}

func runRole(name string) int {
	r := &role{out: json.NewEncoder(os.Stdout)}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	var err error
	switch name {
	case "mtls-server":
		err = r.mtls(ctx, r.serve)
	case "mtls-client":
		err = r.mtls(ctx, r.dial)
	case "fetch":
		err = r.fetch(ctx)
	default:
		err = fmt.Errorf("no role %q", name)
	}
	if err != nil {
		return fail(err)
	}
	return 0
}

func (r *role) say(e event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.UID = os.Getuid()
	if e.Kind == "traffic" {
		r.count++
		if r.count%20 != 0 {
			return
		}
	}
	e.Count = r.count
	if err := r.out.Encode(e); err != nil {
		os.Exit(fail(err))
	}
}

// mtls holds an X509Source, reports each rotation, and meanwhile runs talk.
func (r *role) mtls(ctx context.Context, talk func(context.Context) error) error {
	var err error
	if r.peer, err = spiffeid.FromString(os.Getenv(peerVariable)); err != nil {
		return err
	}
	if r.source, err = workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+os.Getenv(socketVariable)))); err != nil {
		return err
	}
	var talking sync.WaitGroup
	talkCtx, stop := context.WithCancel(ctx)
	talking.Go(func() {
		if err := talk(talkCtx); err != nil {
			r.say(event{Kind: "failed", Error: err.Error()})
		}
	})
	for ctx.Err() == nil {
		svid, err := r.source.GetX509SVID()
		if err != nil {
			r.say(event{Kind: "failed", Error: err.Error()})
			break
		}
		leaf := svid.Certificates[0]
		r.say(event{Kind: "rotated", ID: svid.ID.String(), Serial: leaf.SerialNumber.String(), Authority: hex.EncodeToString(leaf.AuthorityKeyId)})
		select {
		case <-r.source.Updated():
		case <-ctx.Done():
		}
	}
	stop()
	talking.Wait()
	r.say(event{Kind: "done"})
	return r.source.Close()
}

const handshakeTime = 10 * time.Second

// serve echoes one line a connection.
func (r *role) serve(ctx context.Context) error {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	conf := tlsconfig.MTLSServerConfig(r.source, r.source, tlsconfig.AuthorizeID(r.peer))
	r.say(event{Kind: "listening", Address: lis.Addr().String()})
	var conns sync.WaitGroup
	defer conns.Wait()
	stop := context.AfterFunc(ctx, func() { _ = lis.Close() })
	defer stop()
	for {
		raw, err := lis.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		conns.Go(func() { r.report(ctx, r.echo(tls.Server(raw, conf))) })
	}
}

func (r *role) report(ctx context.Context, err error) {
	switch {
	case err == nil:
		r.say(event{Kind: "traffic"})
	case ctx.Err() == nil:
		r.say(event{Kind: "failed", Error: err.Error()})
	}
}

func (r *role) echo(conn *tls.Conn) error {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return err
	}
	if err := conn.Handshake(); err != nil {
		return fmt.Errorf("server's handshake: %w", err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return fmt.Errorf("server reads: %w", err)
	}
	_, err = conn.Write([]byte(line))
	return err
}

// dial makes one connection after the other, each with a new handshake.
func (r *role) dial(ctx context.Context) error {
	conf := tlsconfig.MTLSClientConfig(r.source, r.source, tlsconfig.AuthorizeID(r.peer))
	for ctx.Err() == nil {
		r.report(ctx, r.once(conf))
		select {
		case <-time.After(pollPause):
		case <-ctx.Done():
		}
	}
	return nil
}

func (r *role) once(conf *tls.Config) error {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: handshakeTime}, Config: conf}
	conn, err := d.DialContext(context.Background(), "tcp", os.Getenv(dialVariable))
	if err != nil {
		return fmt.Errorf("client's handshake: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("hello\n")); err != nil {
		return fmt.Errorf("client writes: %w", err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "hello\n" {
		return fmt.Errorf("client reads %q: %w", line, err)
	}
	return nil
}

// fetch asks for X509-SVIDs once, as a process that did not exist before.
func (r *role) fetch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	x, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr("unix://"+os.Getenv(socketVariable)))
	if err != nil {
		r.say(event{Kind: "failed", Error: err.Error()})
		return nil
	}
	for _, s := range x.SVIDs {
		r.say(event{Kind: "rotated", ID: s.ID.String(), Serial: s.Certificates[0].SerialNumber.String()})
	}
	return nil
}

// actor is a role in its own process, as the test sees it.
type actor struct {
	*process
	stdin io.WriteCloser
}

// play starts a role from the executable at path. uid 0 means: the test's own.
func (w *world) play(name, path string, uid uint32, env ...string) *actor {
	w.t.Helper()
	cmd := exec.Command(path)
	for _, v := range env {
		if args, ok := strings.CutPrefix(v, argsVariable+"="); ok {
			cmd.Args = append(cmd.Args, strings.Fields(args)...)
		}
	}
	cmd.Dir = "/"
	cmd.Env = append([]string{roleVariable + "=" + name}, env...)
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	return &actor{process: w.launch(name, cmd), stdin: stdin}
}

// stage is a copy of this test's binary that every user may run.
func (w *world) stage(name string) string {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	path := w.path(name)
	copyFile(w.t, self, path)
	return path
}

// events are what the actor has said so far.
func (a *actor) events() []event {
	var out []event
	text, _ := a.log.snapshot()
	for d := json.NewDecoder(strings.NewReader(text)); ; {
		var e event
		if d.Decode(&e) != nil {
			return out
		}
		out = append(out, e)
	}
}

// finish closes the actor's stdin, waits for its end and returns all it said.
func (w *world) finish(a *actor) []event {
	w.t.Helper()
	if err := a.stdin.Close(); err != nil {
		w.t.Fatal(err)
	}
	if code := a.exit(w.t, stopTime); code != 0 {
		w.t.Errorf("%s ended with exit code %d", a.name, code)
	}
	return a.events()
}
