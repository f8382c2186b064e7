package agentapi_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/server/apitest"
	"github.com/credence-id/credence/pkg/server/rpcerr"
)

func renew(ctx context.Context, t *testing.T, client agentv1.AgentClient, key *ecdsa.PrivateKey) (*tls.Certificate, error) {
	t.Helper()
	out, err := client.RenewAgent(ctx, &agentv1.RenewAgentRequest{
		Params: &agentv1.AgentX509SVIDParams{Csr: apitest.CSR(t, key, x509.CertificateRequest{})},
	})
	if err != nil {
		return nil, err
	}
	return certOf(t, out.GetSvid(), key), nil
}

func TestRenew(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{})
	agent := w.NewAgent(t, "one")
	old := agentv1.NewAgentClient(w.Dial(t, &agent.Cert))
	next, err := renew(t.Context(), t, old, apitest.NewKey(t))
	if err != nil {
		t.Fatal(err)
	}
	if next.Leaf.URIs[0].String() != agent.ID.String() {
		t.Errorf("the next SVID is for %s", next.Leaf.URIs[0])
	}
	if _, err := old.PostStatus(t.Context(), &agentv1.PostStatusRequest{}); err != nil {
		t.Errorf("the SVID in use, before the next is used: %v", err)
	}
	if _, err := agentv1.NewAgentClient(w.Dial(t, next)).PostStatus(t.Context(), &agentv1.PostStatusRequest{}); err != nil {
		t.Errorf("first use of the next SVID: %v", err)
	}
	if _, err := old.PostStatus(t.Context(), &agentv1.PostStatusRequest{}); reason(err) != types.PermissionDeniedDetails_AGENT_NOT_ACTIVE {
		t.Errorf("the SVID before, after that: %v, want AGENT_NOT_ACTIVE", err)
	}
}

func TestRenewRefusals(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{})
	client := agentv1.NewAgentClient(w.Dial(t, &w.NewAgent(t, "one").Cert))
	for name, c := range map[string]struct {
		params *agentv1.AgentX509SVIDParams
		text   string
	}{
		"no params": {nil, "params cannot be nil"},
		"no CSR":    {&agentv1.AgentX509SVIDParams{}, "missing CSR"},
		"noise":     {&agentv1.AgentX509SVIDParams{Csr: []byte("noise")}, "failed to parse CSR"},
	} {
		_, err := client.RenewAgent(t.Context(), &agentv1.RenewAgentRequest{Params: c.params})
		if status.Code(err) != codes.InvalidArgument || !strings.HasPrefix(status.Convert(err).Message(), c.text) {
			t.Errorf("%s: %v, want InvalidArgument: %s", name, err, c.text)
		}
	}
	_, err := client.PostStatus(t.Context(), &agentv1.PostStatusRequest{AgentVersion: strings.Repeat("1", 256)})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("long version: %v, want InvalidArgument", err)
	}
}

// TestS31_RenewalNeverLocksOut: whatever write fails, before or after its
// commit, and whichever reply is lost on the way, the agent gets on with the
// SVID it used last or the newest it was given.
func TestS31_RenewalNeverLocksOut(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var faults apitest.Faults
	w := world(t, apitest.Options{Wrap: faults.Wrap})
	agent := w.NewAgent(t, "one")
	used, given := &agent.Cert, (*tls.Certificate)(nil)
	act := func(cert *tls.Certificate) error {
		_, err := agentv1.NewAgentClient(w.Dial(t, cert)).PostStatus(t.Context(), &agentv1.PostStatusRequest{})
		return err
	}
	for range 120 {
		if rnd.IntN(2) == 0 {
			faults.FailAt(1, rnd.IntN(2) == 0)
		}
		switch {
		case rnd.IntN(2) == 0: // Renew; the reply may be lost.
			next, err := renew(t.Context(), t, agentv1.NewAgentClient(w.Dial(t, used)), apitest.NewKey(t))
			given = nil // What was given before is not the next one any more.
			if err == nil && rnd.IntN(3) > 0 {
				given = next
			}
		case given != nil: // Use what was given.
			if act(given) == nil {
				used, given = given, nil
			}
		}
		faults.FailAt(0, false)
		cert := used
		if given != nil && act(used) != nil {
			// Its first use was committed although it failed.
			cert = given
		}
		if err := act(cert); err != nil {
			t.Fatalf("locked out: %v", err)
		}
		if cert == given {
			used, given = given, nil
		}
	}
}

// TestS31_SerialIsOnDiskFirst: when the write of the next serial fails, no SVID
// is answered.
func TestS31_SerialIsOnDiskFirst(t *testing.T) {
	t.Parallel()
	for _, committed := range []bool{false, true} {
		t.Run(fmt.Sprint("committed ", committed), func(t *testing.T) {
			t.Parallel()
			var faults apitest.Faults
			w := world(t, apitest.Options{Wrap: faults.Wrap})
			agent := w.NewAgent(t, "one")
			client := agentv1.NewAgentClient(w.Dial(t, &agent.Cert))
			faults.FailAt(1, committed)
			if _, err := renew(t.Context(), t, client, agent.Key); status.Code(err) != codes.Unavailable {
				t.Fatalf("with a failing write: %v, want Unavailable", err)
			}
			if _, err := renew(t.Context(), t, client, agent.Key); err != nil {
				t.Errorf("again: %v", err)
			}
		})
	}
}

// TestS25_AuthorityIsPerCall: a connection that was opened in good time is worth
// nothing after the agent was evicted, banned, or used its next SVID.
func TestS25_AuthorityIsPerCall(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{})
	admin := agentv1.NewAgentClient(w.Local(t))
	for name, c := range map[string]struct {
		end  func(t *testing.T, a *apitest.Agent, client agentv1.AgentClient) error
		want types.PermissionDeniedDetails_Reason
	}{
		"evicted": {func(t *testing.T, a *apitest.Agent, _ agentv1.AgentClient) error {
			_, err := admin.DeleteAgent(t.Context(), &agentv1.DeleteAgentRequest{Id: wireID(a)})
			return err
		}, types.PermissionDeniedDetails_AGENT_NOT_ATTESTED},
		"banned": {func(t *testing.T, a *apitest.Agent, _ agentv1.AgentClient) error {
			_, err := admin.BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: wireID(a)})
			return err
		}, types.PermissionDeniedDetails_AGENT_BANNED},
		"renewed": {func(t *testing.T, a *apitest.Agent, client agentv1.AgentClient) error {
			next, err := renew(t.Context(), t, client, a.Key)
			if err != nil {
				return err
			}
			_, err = agentv1.NewAgentClient(w.Dial(t, next)).PostStatus(t.Context(), &agentv1.PostStatusRequest{})
			return err
		}, types.PermissionDeniedDetails_AGENT_NOT_ACTIVE},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := w.NewAgent(t, name)
			client := agentv1.NewAgentClient(w.Dial(t, &a.Cert))
			if _, err := client.PostStatus(t.Context(), &agentv1.PostStatusRequest{}); err != nil {
				t.Fatal(err)
			}
			if err := c.end(t, a, client); err != nil {
				t.Fatal(err)
			}
			_, err := client.PostStatus(t.Context(), &agentv1.PostStatusRequest{})
			if status.Code(err) != codes.PermissionDenied || reason(err) != c.want {
				t.Errorf("on the old connection: %v (%v), want PermissionDenied (%v)", err, reason(err), c.want)
			}
		})
	}
}

func wireID(a *apitest.Agent) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: a.ID.TrustDomain().Name(), Path: a.ID.Path()}
}

func TestAuthenticateExpired(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{})
	a := w.NewAgent(t, "one")
	leaf, err := x509.ParseCertificate(a.Cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	leaf.NotAfter = time.Now().Add(-time.Second)
	if err := w.Agents.Authenticate(t.Context(), a.ID, leaf); reason(err) != types.PermissionDeniedDetails_AGENT_EXPIRED {
		t.Errorf("expired: %v, want AGENT_EXPIRED", err)
	}
	leaf.NotAfter = time.Now().Add(50 * time.Millisecond)
	ctx, release, err := w.Agents.Hold(t.Context(), a.ID, leaf)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	<-ctx.Done()
	if err := context.Cause(ctx); reason(err) != types.PermissionDeniedDetails_AGENT_EXPIRED {
		t.Errorf("held over the end: %v, want AGENT_EXPIRED", err)
	}
}

// TestHoldMeetsBan: of a ban and a stream that opens at the same time, one sees
// the other, whatever the order.
func TestHoldMeetsBan(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{})
	for i := range 60 {
		a := w.NewAgent(t, fmt.Sprint("a", i))
		leaf, err := x509.ParseCertificate(a.Cert.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		var racing sync.WaitGroup
		racing.Go(func() {
			if err := w.Registry.BanAgent(t.Context(), a.ID); err != nil {
				t.Error(err)
			}
		})
		racing.Go(func() {
			time.Sleep(time.Duration(rand.IntN(1500)) * time.Microsecond)
			ctx, release, err := w.Agents.Hold(t.Context(), a.ID, leaf)
			if err != nil {
				return
			}
			defer release()
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Second):
				t.Errorf("a stream of %s outlived its ban", a.ID)
			}
		})
		racing.Wait()
	}
}

// TestAuthenticateAheadOfIndex: an agent that another server let in just now is
// not refused because this server has not heard of it yet, nor one that was
// given its next SVID there.
func TestAuthenticateAheadOfIndex(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	hold := func(*registry.Commit) { mu.Lock(); defer mu.Unlock() }
	w := world(t, apitest.Options{Hold: hold})
	for name, prepare := range map[string]func() *apitest.Agent{
		"attested elsewhere": func() *apitest.Agent {
			mu.Lock()
			return w.AttestedAgent(t, "one")
		},
		"renewed elsewhere": func() *apitest.Agent {
			a := w.NewAgent(t, "two")
			mu.Lock()
			return w.RenewedAgent(t, a)
		},
	} {
		a := prepare()
		leaf, err := x509.ParseCertificate(a.Cert.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		if known, ok := w.Index.Agent(a.ID); ok && known.Accepts(leaf.SerialNumber.String()) {
			t.Fatalf("%s: the index knows the agent: this test does not test that", name)
		}
		var asking sync.WaitGroup
		for range 8 {
			asking.Go(func() {
				_, release, err := w.Agents.Hold(t.Context(), a.ID, leaf)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				release()
			})
		}
		time.AfterFunc(10*time.Millisecond, mu.Unlock)
		asking.Wait()
	}
}

// TestAuthenticateCutOff: whom this server knows is let in while the store cannot
// be asked; of whom it does not know nothing is said that an agent would act on.
func TestAuthenticateCutOff(t *testing.T) {
	t.Parallel()
	cut := &cutHead{}
	w := world(t, apitest.Options{Wrap: cut.wrap})
	known := w.NewAgent(t, "known")
	leaf := func(a *apitest.Agent) *x509.Certificate {
		cert, err := x509.ParseCertificate(a.Cert.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	stranger := &apitest.Agent{ID: spiffeid.RequireFromString("spiffe://example.org/spire/agent/test/stranger"), Cert: known.Cert}
	cut.away.Store(true)
	if _, release, err := w.Agents.Hold(t.Context(), known.ID, leaf(known)); err != nil {
		t.Errorf("an agent that is known: %v", err)
	} else {
		release()
	}
	err := w.Agents.Authenticate(t.Context(), stranger.ID, leaf(stranger))
	if got := rpcerr.Status(err); got.Code() != codes.Unavailable || len(got.Details()) != 0 {
		t.Errorf("one that is not: %v, want Unavailable", err)
	}
}

// cutHead is a store whose head cannot be read while it is away.
type cutHead struct {
	store.Store
	away atomic.Bool
}

func (c *cutHead) wrap(s store.Store) store.Store {
	c.Store = s
	return c
}

func (c *cutHead) Head(ctx context.Context) (store.Revision, error) {
	if c.away.Load() {
		return 0, store.ErrUnavailable
	}
	return c.Store.Head(ctx)
}
