package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/pkg/agent/feed"
	"github.com/credence-id/credence/pkg/agent/route"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// signer is a server that mints JWT-SVIDs, or says why it does not.
type signer struct {
	svidv1.UnimplementedSVIDServer
	calls int
	err   error
	*grpc.Server
}

func (s *signer) NewJWTSVID(context.Context, *svidv1.NewJWTSVIDRequest) (*svidv1.NewJWTSVIDResponse, error) {
	s.calls++
	return &svidv1.NewJWTSVIDResponse{Svid: &types.JWTSVID{Token: "token"}}, s.err
}

// plain is no security.
type plain struct{}

func (plain) Credentials() credentials.TransportCredentials { return insecure.NewCredentials() }
func (plain) Explain(err error) error                       { return err }

// signers runs n servers, and returns an agent that could go to them.
func signers(t *testing.T, n int) (*Agent, map[string]*signer) {
	t.Helper()
	out, listeners, addresses := map[string]*signer{}, map[string]*bufconn.Listener{}, []string{}
	for i := range n {
		address := fmt.Sprintf("server-%d:8081", i)
		s, l, done := &signer{Server: grpc.NewServer()}, bufconn.Listen(1<<16), make(chan error, 1)
		svidv1.RegisterSVIDServer(s.Server, s)
		go func() { done <- s.Serve(l) }()
		t.Cleanup(func() {
			s.Stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		out[address], listeners[address], addresses = s, l, append(addresses, address)
	}
	a := &Agent{config: &Config{}, log: slog.New(slog.DiscardHandler), identity: &identity{}}
	a.route = route.New(route.Config{Addresses: addresses, Dial: func(ctx context.Context, address string) (net.Conn, error) {
		return listeners[address].DialContext(ctx)
	}})
	t.Cleanup(func() {
		a.background.Wait()
		if l := a.link.Load(); l != nil {
			if err := l.close(); err != nil {
				t.Error(err)
			}
		}
	})
	return a, out
}

// goOn connects to the next server, and returns its address.
func (a *Agent) goOn(t *testing.T) string {
	t.Helper()
	conn, err := a.route.Connect(t.Context(), func() route.Security { return plain{} })
	l, err := newLink(nil, conn, err)
	if err != nil {
		t.Fatal(err)
	}
	a.replaceLink(t.Context(), l)
	return conn.Address
}

// TestCallsGoOnElsewhere: a call that fails because its connection went is made
// again on the next one, if there is one soon.
func TestCallsGoOnElsewhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, servers := signers(t, 2)
		a.connected.Store(true)
		mint := func() (time.Duration, error) {
			begin := time.Now()
			_, _, _, err := (*minter)(a).MintJWT(t.Context(), "entry", []string{"aud"})
			return time.Since(begin), err
		}
		if _, err := mint(); status.Code(err) != codes.Unavailable {
			t.Errorf("before the first connection: %v", err)
		}
		first := a.goOn(t)
		if _, err := mint(); err != nil {
			t.Fatal(err)
		}
		servers[first].err = status.Error(codes.Unavailable, "cannot sign now")
		if took, err := mint(); status.Code(err) != codes.Unavailable || took != 0 {
			t.Errorf("the server says that it cannot: %v after %v", err, took)
		}

		servers[first].Stop()
		if took, err := mint(); status.Code(err) != codes.Unavailable || took != failoverWait {
			t.Errorf("it is gone, and there is no other: %v after %v", err, took)
		}
		go func() {
			time.Sleep(time.Second)
			a.route.Leave()
			a.goOn(t)
		}()
		if took, err := mint(); err != nil || took != time.Second {
			t.Errorf("it is gone, and there is another: %v after %v", err, took)
		}

		for _, s := range servers {
			s.Stop()
		}
		if err := a.link.Load().conn.Invoke(t.Context(), "/none", nil, nil); err == nil {
			t.Error("no server, and a call succeeded")
		}
		a.connected.Store(false)
		a.lost(time.Now())
		time.Sleep(failoverWait)
		if took, err := mint(); status.Code(err) != codes.Unavailable || took != 0 {
			t.Errorf("it is gone for long: %v after %v", err, took)
		}
	})
}

// TestHurry: one pass over all servers, then a pause.
func TestHurry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lost := status.Error(codes.Unavailable, "lost")
		for n, passes := range map[int][]bool{
			1: {false, false}, 2: {true, false, true, false}, 3: {true, true, false, true, true, false},
		} {
			a, _ := signers(t, n)
			tried, last := 0, ""
			for i, want := range passes {
				at := a.goOn(t)
				if n > 1 && at == last {
					t.Errorf("of %d servers, the one that was lost is the next", n)
				}
				last = at
				time.Sleep(time.Millisecond)
				pause, more := a.hurry(lost, i == 0, &tried)
				if more != want || pause > lostSpread {
					t.Errorf("%d servers, attempt %d: goes on at once %v after %v, want %v", n, i, more, pause, want)
				}
			}
		}

		a, servers := signers(t, 3)
		tried := 0
		at := a.goOn(t)
		for _, err := range []error{
			errors.New("what it sent makes no sense"), denied(t, types.PermissionDeniedDetails_AGENT_NOT_ACTIVE),
			status.Error(codes.Aborted, "a newer stream took over"),
		} {
			if _, more := a.hurry(err, true, &tried); more || a.goOn(t) != at {
				t.Errorf("another server would not do better: %v", err)
			}
		}
		if _, more := a.hurry(fmt.Errorf("following: %w", feed.ErrDiverged), true, &tried); !more || a.goOn(t) == at {
			t.Error("an agent stays with a server whose digest is not that of what it sends")
		}
		for _, s := range servers {
			s.Stop()
		}
		_, err := a.route.Connect(t.Context(), func() route.Security { return plain{} })
		if _, more := a.hurry(err, true, &tried); more {
			t.Errorf("all were tried, and the agent does not wait: %v", err)
		}
	})
}

// TestUntrustedByAll: an agent that has no identity yet gives up when no server
// can be verified, and not when one of several cannot.
func TestUntrustedByAll(t *testing.T) {
	t.Parallel()
	if !untrusted(fmt.Errorf("first contact: %w", errUntrusted)) || untrusted(errors.New("away")) {
		t.Error("of one server")
	}
	for name, tc := range map[string]struct {
		explain []error
		want    bool
	}{
		"all":  {[]error{errUntrusted, errUntrusted}, true},
		"some": {[]error{errUntrusted, errors.New("away")}, false},
	} {
		r := route.New(route.Config{Addresses: []string{"a:1", "b:1"}, Dial: func(context.Context, string) (net.Conn, error) {
			return nil, errors.New("refused")
		}})
		says := make(chan error, 2)
		for _, err := range tc.explain {
			says <- err
		}
		_, err := r.Connect(t.Context(), func() route.Security { return explains{err: <-says} })
		if got := untrusted(err); got != tc.want || !errors.Is(err, errUntrusted) {
			t.Errorf("%s: %v (%v)", name, got, err)
		}
	}
}

// explains what goes wrong.
type explains struct {
	plain
	err error
}

func (e explains) Explain(error) error { return e.err }

func TestServerAddresses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		text string // of the section
		want string // of the problem
	}{
		"one":            {`server_address = "server.test"`, ""},
		"several":        {`server_addresses = ["a.test:8081", "10.0.0.1:443", "[2001:db8::1]:8081"]`, ""},
		"none":           {``, "agent.server_address: is required, or server_addresses"},
		"both":           {"server_address = \"a.test\"\nserver_addresses = [\"a.test:1\"]", ":3: agent.server_addresses: is exclusive with server_address"},
		"without a port": {`server_addresses = ["a.test"]`, `:2: agent.server_addresses: "a.test" is not host:port`},
		"port 0":         {`server_addresses = ["a.test:0"]`, `is not host:port`},
		"no host":        {`server_addresses = [":8081"]`, `is not host:port`},
		"twice":          {`server_addresses = ["a.test:1", "b.test:1", "a.test:1"]`, `"a.test:1" is there twice`},
		"port beside":    {"server_port = 443\nserver_addresses = [\"a.test:1\"]", ":2: agent.server_port: is for server_address"},
	} {
		path := filepath.Join(t.TempDir(), "agent.conf")
		if err := os.WriteFile(path, []byte("agent {\n"+tc.text+"\n}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Load(path, false)
		if err != nil {
			t.Fatal(err)
		}
		err = c.Validate()
		if got := strings.Contains(err.Error(), "agent.server_"); got != (tc.want != "") || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}
