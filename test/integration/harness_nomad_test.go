package integration

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	feedv1 "github.com/credence-id/credence/proto/feed/v1"
)

// nomad is an agent that follows the feed of any of several servers, changes over
// when one ends, and checks all that it is told. It serves nobody, so that a
// story can have many.
type nomad struct {
	t       *testing.T
	name    string
	id      spiffeid.ID
	parents []string // paths of the parents of entries that it may have
	servers []*server
	svid    *x509svid.SVID
	roots   *x509bundle.Bundle

	// visiting: it leaves once it is in sync.
	visiting bool

	mu sync.Mutex
	// guarded by mu:
	held    map[string]held
	storeID string
	cursor  uint64
	synced  bool               // since the last connection
	at      int                // which server it is connected to, -1 for none
	refused error              // why it was told to go for good
	seen    func(*types.Entry) // is told of each entry it is given
}

// held is what a nomad knows of an entry.
type held struct {
	revision uint64 // of the store
	number   int64  // revision_number
}

// newNomad attests an agent at one server, in a group that has the alias.
func newNomad(t *testing.T, at *server, servers []*server, name, group string) *nomad {
	t.Helper()
	token, err := at.agents().CreateJoinToken(bounded(t), &agentv1.CreateJoinTokenRequest{Ttl: 600, AgentId: apiID(at.id(group))})
	if err != nil {
		t.Fatalf("making a join token: %v", err)
	}
	n := &nomad{t: t, name: name, servers: servers, held: make(map[string]held), at: -1, roots: x509bundle.New(at.td)}
	n.learn(at.bundle())
	key := newECKey(t)
	resp, err := joinWith(bounded(t), n.dialAs(at, nil), token.GetValue(), newCSR(t, key))
	if err != nil {
		t.Fatalf("attesting: %v", err)
	}
	n.svid = &x509svid.SVID{PrivateKey: key}
	for _, der := range resp.GetResult().GetSvid().GetCertChain() {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		n.svid.Certificates = append(n.svid.Certificates, cert)
	}
	n.id = spiffeid.RequireFromString(n.svid.Certificates[0].URIs[0].String())
	n.svid.ID = n.id
	n.parents = []string{n.id.Path(), group}
	return n
}

func newECKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newCSR(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// joinWith attests with a join token.
func joinWith(ctx context.Context, conn *grpc.ClientConn, token string, csr []byte) (*agentv1.AttestAgentResponse, error) {
	stream, err := agentv1.NewAgentClient(conn).AttestAgent(ctx)
	if err != nil {
		return nil, err
	}
	// Why it could not be sent is what Recv says.
	_ = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data:   &types.AttestationData{Type: "join_token", Payload: []byte(token)},
		Params: &agentv1.AgentX509SVIDParams{Csr: csr},
	}}})
	return stream.Recv()
}

// learn takes over the authorities of a bundle.
func (n *nomad) learn(b *types.Bundle) {
	var certs []*x509.Certificate
	for _, a := range b.GetX509Authorities() {
		cert, err := x509.ParseCertificate(a.GetAsn1())
		if err != nil {
			n.t.Errorf("%s: %v", n.name, err)
			continue
		}
		certs = append(certs, cert)
	}
	n.roots.SetX509Authorities(certs)
}

// dialAs connects to a server, with the SVID or as a stranger.
func (n *nomad) dialAs(s *server, svid *x509svid.SVID) *grpc.ClientConn {
	auth := tlsconfig.AuthorizeID(spiffeid.RequireFromPath(s.td, "/spire/server"))
	conf := tlsconfig.TLSClientConfig(n.roots, auth)
	if svid != nil {
		conf = tlsconfig.MTLSClientConfig(svid, n.roots, auth)
	}
	conn, err := grpc.NewClient("passthrough:///"+net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)),
		grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// follow keeps a stream to one of the servers until ctx ends or the nomad is
// refused.
func (n *nomad) follow(ctx context.Context, first int) {
	for i := first; ctx.Err() == nil; i++ {
		at := i % len(n.servers)
		conn := n.dialAs(n.servers[at], n.svid)
		err := n.stream(ctx, conn, at)
		_ = conn.Close() // It is of no use any more.
		n.mu.Lock()
		n.at, n.synced = -1, false
		if status.Code(err) == codes.PermissionDenied {
			n.refused = err
			n.mu.Unlock()
			return
		}
		n.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(20*time.Millisecond + mathrand.N(80*time.Millisecond)):
		}
	}
}

// stream follows one stream to its end.
func (n *nomad) stream(ctx context.Context, conn *grpc.ClientConn, at int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := feedv1.NewFeedClient(conn).Watch(ctx)
	if err != nil {
		return err
	}
	// Why it could not be sent is what Recv says.
	_ = stream.Send(&feedv1.WatchRequest{Step: &feedv1.WatchRequest_Open{Open: n.open()}})
	n.mu.Lock()
	n.at = at
	n.mu.Unlock()
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := n.take(m); err != nil {
			return err
		}
	}
}

func (n *nomad) open() *feedv1.Open {
	n.mu.Lock()
	defer n.mu.Unlock()
	sums := n.sums()
	return &feedv1.Open{StoreId: n.storeID, Revision: n.cursor, Buckets: sums[:]}
}

func (n *nomad) sums() *[feedv1.Buckets]uint64 {
	var sums [feedv1.Buckets]uint64
	for id, h := range n.held {
		sums[feedv1.Bucket(id)] ^= feedv1.Sum(id, h.revision)
	}
	return &sums
}

var (
	errDigest = errors.New("the digest is another one")
	errSeen   = errors.New("the visitor has seen enough")
)

// take applies a message and checks it.
func (n *nomad) take(m *feedv1.WatchResponse) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := m.GetSynced(); s != nil {
		if n.storeID == s.GetStoreId() && s.GetRevision() < n.cursor {
			n.t.Errorf("%s: went backwards from revision %d to %d", n.name, n.cursor, s.GetRevision())
		}
		n.storeID, n.cursor, n.synced = s.GetStoreId(), s.GetRevision(), true
		if diff := cmp.Diff(s.GetDigest(), feedv1.Digest(n.sums())); diff != "" {
			n.held, n.cursor, n.storeID = make(map[string]held), 0, ""
			n.t.Errorf("%s: the digest is not that of what it was sent, at revision %d", n.name, s.GetRevision())
			return errDigest
		}
		if n.visiting {
			return errSeen
		}
		return nil
	}
	d := m.GetDelta()
	for _, bucket := range d.GetResync() {
		for id := range n.held {
			if uint32(feedv1.Bucket(id)) == bucket {
				delete(n.held, id)
			}
		}
	}
	for _, id := range d.GetRemoves() {
		delete(n.held, id)
	}
	for _, u := range d.GetUpserts() {
		n.put(u)
	}
	for _, b := range d.GetBundles() {
		if b.GetBundle().GetTrustDomain() == n.roots.TrustDomain().Name() {
			n.learn(b.GetBundle())
		}
	}
	if !d.GetMore() && n.synced {
		if d.GetRevision() < n.cursor {
			n.t.Errorf("%s: went backwards from revision %d to %d", n.name, n.cursor, d.GetRevision())
		}
		n.cursor = d.GetRevision()
	}
	return nil
}

// put takes an entry; it is called with mu held.
func (n *nomad) put(u *feedv1.EntryVersion) {
	e := u.GetEntry()
	if !slices.Contains(n.parents, e.GetParentId().GetPath()) {
		n.t.Errorf("%s was given an entry of %s", n.name, e.GetParentId().GetPath())
	}
	if before, ok := n.held[e.GetId()]; ok && u.GetRevision() < before.revision {
		n.t.Errorf("%s: entry %s went backwards from revision %d to %d", n.name, e.GetId(), before.revision, u.GetRevision())
	}
	n.held[e.GetId()] = held{revision: u.GetRevision(), number: e.GetRevisionNumber()}
	n.seen(e)
}

// holds are the entries it has, with their revision numbers; those that came with
// its token left out.
func (n *nomad) holds() map[string]int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make(map[string]int64, len(n.held))
	for id, h := range n.held {
		if strings.HasPrefix(id, writerPrefix) {
			out[id] = h.number
		}
	}
	return out
}

// connected is the server it follows, -1 for none.
func (n *nomad) connected() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.synced {
		return -1
	}
	return n.at
}

// wasRefused says why the nomad was sent away, or nil.
func (n *nomad) wasRefused() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.refused
}

// sign asks a server for an X509-SVID of an entry.
func (n *nomad) sign(conn *grpc.ClientConn, entry string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	resp, err := svidv1.NewSVIDClient(conn).BatchNewX509SVID(ctx, &svidv1.BatchNewX509SVIDRequest{
		Params: []*svidv1.NewX509SVIDParams{{EntryId: entry, Csr: newCSR(n.t, key)}},
	})
	if err != nil {
		return err
	}
	s := resp.GetResults()[0].GetStatus()
	return status.Error(codes.Code(s.GetCode()), fmt.Sprint(s.GetMessage()))
}
