package server

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// behind lets a server's log lag for a moment, in which the next calls are made.
func (r *running) behind(moment time.Duration) {
	r.way.lag()
	time.AfterFunc(moment, r.way.catchUp)
}

// TestAgentCrossesServers: what one server did for an agent, another that has not
// heard of it yet stands by.
func TestAgentCrossesServers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	a, b := c.servers[0], c.servers[1]
	const moment = 50 * time.Millisecond

	b.behind(moment)
	agent := a.attest(t)
	if _, err := entryv1.NewEntryClient(agent.at(t, b)).GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{}); err != nil {
		t.Errorf("an agent that attested at another server: %v", err)
	}

	b.behind(moment)
	id := a.register(t, &types.Entry{SpiffeId: wireID("/x"), ParentId: wireID(agent.id.Path())})
	if err := agent.sign(t, agent.at(t, b), id); err != nil {
		t.Errorf("an X509-SVID for an entry that was made at another server: %v", err)
	}
	b.behind(moment)
	id = a.register(t, &types.Entry{SpiffeId: wireID("/y"), ParentId: wireID(agent.id.Path())})
	if _, err := svidv1.NewSVIDClient(agent.at(t, b)).NewJWTSVID(t.Context(), &svidv1.NewJWTSVIDRequest{EntryId: id, Audience: []string{"x"}}); err != nil {
		t.Errorf("a JWT-SVID for one: %v", err)
	}

	b.behind(moment)
	next := agent.renew(t, agent.at(t, a))
	if err := next.sign(t, next.at(t, b), id); err != nil {
		t.Errorf("an agent that renewed at another server: %v", err)
	}
	// The first use at one server ends the one before at all.
	soon(t, "the serial before is refused where it was issued", func(context.Context) bool {
		return status.Code(agent.sign(t, agent.at(t, a), id)) == codes.PermissionDenied
	})
	if err := next.sign(t, next.at(t, a), id); err != nil {
		t.Errorf("the next serial at the server that issued it: %v", err)
	}
}

// TestServerOfAnAuthorityNobodyKnows: an agent of a server that has just joined
// is let in by one that has not heard of that server's authority.
func TestServerOfAnAuthorityNobodyKnows(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	old := c.servers[0]
	old.way.lag()
	fresh := c.add(t)
	agent := fresh.attest(t)
	time.AfterFunc(50*time.Millisecond, old.way.catchUp)
	if _, err := entryv1.NewEntryClient(agent.at(t, old)).GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{}); err != nil {
		t.Errorf("an SVID of an authority that was not known yet: %v", err)
	}
	if _, err := entryv1.NewEntryClient(old.attest(t).at(t, fresh)).GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{}); err != nil {
		t.Errorf("the other way round: %v", err)
	}
}

// TestStrangersCostTheStoreLittle: certificates of nobody known, as many as come,
// do not make the server ask its store more than ten times a second.
func TestStrangersCostTheStoreLittle(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	r := c.servers[0]
	conns := make([]*grpc.ClientConn, 40)
	for i := range conns {
		conns[i] = r.dial(t, foreignCA(t))
	}
	before, begin := r.way.heads.Load(), time.Now()
	var strangers sync.WaitGroup
	for _, conn := range conns {
		strangers.Go(func() {
			_, err := bundlev1.NewBundleClient(conn).GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
			if err == nil {
				t.Error("a stranger's certificate was taken")
			}
		})
	}
	strangers.Wait()
	if n, most := r.way.heads.Load()-before, 2+int64(time.Since(begin)/strangersGap); n > most {
		t.Errorf("the store was asked %d times, at most %d expected", n, most)
	}
}

// foreignCA is a certificate of an agent's name by an authority of the caller's
// own.
func foreignCA(t testing.TB) *tls.Certificate {
	t.Helper()
	key := newKey(t)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	leaf := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	tmpl.URIs = append(tmpl.URIs, spiffeid.RequireFromString("spiffe://example.org/spire/agent/join_token/x").URL())
	if der, err = x509.CreateCertificate(rand.Reader, tmpl, ca, leaf.Public(), key); err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: leaf}
}

// TestFlightsShare: whoever asks gets what was true after the call, and those who
// wait share one run.
func TestFlightsShare(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var now, runs atomic.Int64
		f := newFlights(100*time.Millisecond, func(context.Context) (int64, error) {
			runs.Add(1)
			value := now.Load()
			time.Sleep(10 * time.Millisecond)
			return value, nil
		})
		var asking sync.WaitGroup
		for range 100 {
			asking.Go(func() {
				for range 10 {
					want := now.Add(1)
					if got, err := f.get(t.Context()); err != nil || got < want {
						t.Errorf("%d, %v, from before %d", got, err, want)
					}
				}
			})
		}
		asking.Wait()
		if n := runs.Load(); n < 10 || n > 12 {
			t.Errorf("%d runs for ten rounds", n)
		}
		// One that is given up is done by somebody else.
		gone, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		asking.Go(func() {
			if _, err := f.get(gone); err == nil {
				t.Error("it did not wait for its turn")
			}
		})
		synctest.Wait()
		if _, err := f.get(t.Context()); err != nil {
			t.Error(err)
		}
		asking.Wait()
	})
}

// TestReadsAfterWritesAcrossServers: what one server has answered, every read of
// another shows, though its log lags.
func TestReadsAfterWritesAcrossServers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	a, b := c.servers[0], c.servers[1]
	other := &types.Bundle{TrustDomain: "other.test", X509Authorities: a.bundle(t).X509Authorities}
	step := func(write, read string, do func(), seen func(*grpc.ClientConn) (bool, error)) {
		t.Helper()
		b.behind(30 * time.Millisecond)
		do()
		if ok, err := seen(b.admin(t)); !ok || err != nil {
			t.Errorf("%s does not show %s: %v", read, write, err)
		}
	}
	var entry string
	step("an entry", "GetEntry", func() { entry = a.register(t, &types.Entry{SpiffeId: wireID("/x"), ParentId: wireID("/p")}) },
		func(conn *grpc.ClientConn) (bool, error) {
			e, err := entryv1.NewEntryClient(conn).GetEntry(t.Context(), &entryv1.GetEntryRequest{Id: entry})
			return e != nil, err
		})
	step("an entry", "CountEntries", func() { a.register(t, &types.Entry{SpiffeId: wireID("/y"), ParentId: wireID("/p")}) },
		func(conn *grpc.ClientConn) (bool, error) {
			n, err := entryv1.NewEntryClient(conn).CountEntries(t.Context(), &entryv1.CountEntriesRequest{})
			return n.GetCount() == 2, err
		})
	var agent *testAgent
	step("an agent", "GetAgent", func() { agent = a.attest(t) }, func(conn *grpc.ClientConn) (bool, error) {
		_, err := agentv1.NewAgentClient(conn).GetAgent(t.Context(), &agentv1.GetAgentRequest{Id: wireID(agent.id.Path())})
		return err == nil, err
	})
	step("agents", "CountAgents", func() { a.attest(t) }, func(conn *grpc.ClientConn) (bool, error) {
		n, err := agentv1.NewAgentClient(conn).CountAgents(t.Context(), &agentv1.CountAgentsRequest{})
		return n.GetCount() == 2, err
	})
	step("a ban", "ListAgents", func() { a.ban(t, agent) }, func(conn *grpc.ClientConn) (bool, error) {
		l, err := agentv1.NewAgentClient(conn).ListAgents(t.Context(), &agentv1.ListAgentsRequest{})
		banned := 0
		for _, x := range l.GetAgents() {
			if x.Banned {
				banned++
			}
		}
		return banned == 1, err
	})
	step("a bundle", "ListFederatedBundles", func() {
		_, err := bundlev1.NewBundleClient(a.admin(t)).BatchSetFederatedBundle(t.Context(), &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{other}})
		if err != nil {
			t.Fatal(err)
		}
	}, func(conn *grpc.ClientConn) (bool, error) {
		l, err := bundlev1.NewBundleClient(conn).ListFederatedBundles(t.Context(), &bundlev1.ListFederatedBundlesRequest{})
		return len(l.GetBundles()) == 1, err
	})
	step("a relationship", "GetFederationRelationship", func() {
		_, err := trustdomainv1.NewTrustDomainClient(a.admin(t)).BatchCreateFederationRelationship(t.Context(),
			&trustdomainv1.BatchCreateFederationRelationshipRequest{FederationRelationships: []*types.FederationRelationship{{
				TrustDomain: "other.test", BundleEndpointUrl: "https://other.test",
				BundleEndpointProfile: &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}},
			}}})
		if err != nil {
			t.Fatal(err)
		}
	}, func(conn *grpc.ClientConn) (bool, error) {
		_, err := trustdomainv1.NewTrustDomainClient(conn).GetFederationRelationship(t.Context(),
			&trustdomainv1.GetFederationRelationshipRequest{TrustDomain: "other.test"})
		return err == nil, err
	})
	step("an authority", "GetBundle", func() {
		_, err := bundlev1.NewBundleClient(a.admin(t)).AppendBundle(t.Context(), &bundlev1.AppendBundleRequest{
			X509Authorities: []*types.X509Certificate{{Asn1: foreignRoot(t)}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}, func(conn *grpc.ClientConn) (bool, error) {
		bundle, err := bundlev1.NewBundleClient(conn).GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
		return len(bundle.GetX509Authorities()) == 3, err
	})
}

// foreignRoot is an authority of somebody else.
func foreignRoot(t testing.TB) []byte {
	t.Helper()
	key := newKey(t)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "other"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// ban bans the agent at this server.
func (r *running) ban(t testing.TB, a *testAgent) {
	t.Helper()
	if _, err := agentv1.NewAgentClient(r.admin(t)).BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: wireID(a.id.Path())}); err != nil {
		t.Fatal(err)
	}
}

// sign asks for an X509-SVID of an entry, over the connection.
func (a *testAgent) sign(t testing.TB, conn *grpc.ClientConn, entry string) error {
	t.Helper()
	out, err := svidv1.NewSVIDClient(conn).BatchNewX509SVID(t.Context(), &svidv1.BatchNewX509SVIDRequest{
		Params: []*svidv1.NewX509SVIDParams{{EntryId: entry, Csr: csr(t, newKey(t))}},
	})
	if err != nil {
		return err
	}
	s := out.Results[0].Status
	return status.Error(codes.Code(s.GetCode()), s.GetMessage())
}

// renew gets the agent's next SVID over the connection.
func (a *testAgent) renew(t testing.TB, conn *grpc.ClientConn) *testAgent {
	t.Helper()
	key := newKey(t)
	out, err := agentv1.NewAgentClient(conn).RenewAgent(t.Context(), &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: csr(t, key)}})
	if err != nil {
		t.Fatal(err)
	}
	return &testAgent{id: a.id, cert: tls.Certificate{Certificate: out.Svid.CertChain, PrivateKey: key}}
}

// TestS03_OneTokenThreeServers: of 200 agents that come with one token to three
// servers at once, each with its own key, one is let in; and its key may come
// again, to any of them.
func TestS03_OneTokenThreeServers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	token, err := agentv1.NewAgentClient(c.servers[0].admin(t)).CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 600})
	if err != nil {
		t.Fatal(err)
	}
	clients := make([]agentv1.AgentClient, len(c.servers))
	for i, r := range c.servers {
		clients[i] = agentv1.NewAgentClient(r.dial(t, nil))
	}
	var winners sync.Map
	var won atomic.Int64
	var attempts sync.WaitGroup
	for i := range 200 {
		request := csr(t, newKey(t))
		attempts.Go(func() {
			_, err := join(t.Context(), clients[i%len(clients)], token.Value, request)
			switch {
			case err == nil:
				won.Add(1)
				winners.Store(0, request)
			case status.Code(err) != codes.InvalidArgument:
				t.Errorf("an attempt that came too late: %v", err)
			}
		})
	}
	attempts.Wait()
	if n := won.Load(); n != 1 {
		t.Fatalf("%d of 200 attempts with one token succeeded", n)
	}
	request, _ := winners.Load(0)
	for i, client := range clients {
		if _, err := join(t.Context(), client, token.Value, request.([]byte)); err != nil {
			t.Errorf("the same key again, at server %d: %v", i, err)
		}
		if _, err := join(t.Context(), client, token.Value, csr(t, newKey(t))); status.Code(err) != codes.InvalidArgument {
			t.Errorf("another key, at server %d: %v", i, err)
		}
	}
}

// join attests with a token and one key.
func join(ctx context.Context, client agentv1.AgentClient, token string, csr []byte) (*agentv1.AttestAgentResponse, error) {
	stream, err := client.AttestAgent(ctx)
	if err != nil {
		return nil, err
	}
	err = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data:   &types.AttestationData{Type: "join_token", Payload: []byte(token)},
		Params: &agentv1.AgentX509SVIDParams{Csr: csr},
	}}})
	if err != nil && !strings.Contains(err.Error(), "EOF") {
		return nil, err
	}
	return stream.Recv()
}
