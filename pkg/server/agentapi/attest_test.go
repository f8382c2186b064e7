package agentapi_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"log/slog"
	"math/big"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/attest/node/jointoken"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/server/apitest"
)

// puzzle is a method that asks as many questions as the payload says, and lets
// in whoever echoes them.
type puzzle struct{ reattest bool }

func (puzzle) Name() string { return "puzzle" }

func (p puzzle) Verify(ctx context.Context, a node.Attempt) (node.Result, error) {
	name, rounds, _ := strings.Cut(string(a.Payload), "/")
	for i := range len(rounds) {
		answer, err := a.Challenge(ctx, []byte{byte(i)})
		if err != nil {
			return node.Result{}, err
		}
		if !bytes.Equal(answer, []byte{byte(i)}) {
			return node.Result{}, fmt.Errorf("%w: wrong answer", node.ErrRefused)
		}
	}
	if len(name) > 255 {
		return node.Result{}, fmt.Errorf("%w: the name is too long", node.ErrMalformed)
	}
	id, err := spiffeid.FromSegments(a.TrustDomain, "spire", "agent", "puzzle", name)
	if err != nil {
		return node.Result{}, fmt.Errorf("%w: %w", node.ErrMalformed, err)
	}
	return node.Result{
		AgentID: id, CanReattest: p.reattest,
		Selectors: attest.NewSelectors(attest.Selector{Type: "puzzle", Value: name}),
	}, nil
}

// liar is a method that answers what it must not.
type liar struct {
	name   string
	result node.Result
}

func (l liar) Name() string { return l.name }

func (l liar) Verify(context.Context, node.Attempt) (node.Result, error) { return l.result, nil }

func world(t *testing.T, o apitest.Options, more ...node.Verifier) *apitest.World {
	t.Helper()
	o.Verifiers = map[string]node.Verifier{"join_token": jointoken.Verifier{}, "puzzle": puzzle{}}
	for _, v := range more {
		o.Verifiers[v.Name()] = v
	}
	return apitest.New(t, o)
}

func params(method, payload string, csr []byte) *agentv1.AttestAgentRequest {
	return &agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data:   &types.AttestationData{Type: method, Payload: []byte(payload)},
		Params: &agentv1.AgentX509SVIDParams{Csr: csr},
	}}}
}

// attestOver echoes challenges until there is a result.
func attestOver(ctx context.Context, conn grpc.ClientConnInterface, first *agentv1.AttestAgentRequest) (*agentv1.AttestAgentResponse_Result, error) {
	s, err := agentv1.NewAgentClient(conn).AttestAgent(ctx)
	if err != nil {
		return nil, err
	}
	req := first
	for {
		if err := s.Send(req); err != nil {
			_, err = s.Recv()
			return nil, err
		}
		resp, err := s.Recv()
		if err != nil {
			return nil, err
		}
		if r := resp.GetResult(); r != nil {
			return r, nil
		}
		req = &agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_ChallengeResponse{ChallengeResponse: resp.GetChallenge()}}
	}
}

func token(t *testing.T, w *apitest.World, agentID *types.SPIFFEID) string {
	t.Helper()
	out, err := agentv1.NewAgentClient(w.Local(t)).CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 60, AgentId: agentID})
	if err != nil {
		t.Fatal(err)
	}
	return out.GetValue()
}

func reason(err error) types.PermissionDeniedDetails_Reason {
	for _, d := range status.Convert(err).Details() {
		if p, ok := d.(*types.PermissionDeniedDetails); ok {
			return p.GetReason()
		}
	}
	return types.PermissionDeniedDetails_UNKNOWN
}

// certOf is the certificate of an answer, as its owner shows it.
func certOf(t *testing.T, s *types.X509SVID, key crypto.PrivateKey) *tls.Certificate {
	t.Helper()
	leaf, err := x509.ParseCertificate(s.GetCertChain()[0])
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: s.GetCertChain(), PrivateKey: key, Leaf: leaf}
}

func TestAttestJoinToken(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{})
	alias := &types.SPIFFEID{TrustDomain: "example.org", Path: "/node"}
	tok := token(t, w, alias)
	key := apitest.NewKey(t)
	got, err := attestOver(t.Context(), w.Dial(t, nil), params("join_token", tok, apitest.CSR(t, key, x509.CertificateRequest{})))
	if err != nil {
		t.Fatal(err)
	}
	want := "spiffe://example.org/spire/agent/join_token/" + tok
	cert := certOf(t, got.GetSvid(), key)
	if len(cert.Leaf.URIs) != 1 || cert.Leaf.URIs[0].String() != want {
		t.Errorf("URI SANs %v, want %s", cert.Leaf.URIs, want)
	}
	if id := got.GetSvid().GetId(); "spiffe://"+id.GetTrustDomain()+id.GetPath() != want {
		t.Errorf("SVID's ID %v, want %s", id, want)
	}
	if got.GetReattestable() {
		t.Error("an agent with a join token is said to be reattestable")
	}

	// It can act at once, and what hangs below its alias is its own.
	if _, err := agentv1.NewAgentClient(w.Dial(t, cert)).PostStatus(t.Context(), &agentv1.PostStatusRequest{AgentVersion: "1.2.3"}); err != nil {
		t.Errorf("PostStatus with the new SVID: %v", err)
	}
	id := spiffeid.RequireFromString(want)
	child := w.Create(t, w.Entry(t, spiffeid.RequireFromString("spiffe://example.org/node"), "/child"))[0]
	if _, ok := w.Graph.Lookup(id, child.ID, time.Now()); !ok {
		t.Error("the agent may not have an entry below its alias")
	}
	agent, _ := w.Index.Agent(id)
	if agent.Version != "1.2.3" || agent.Serial != cert.Leaf.SerialNumber.String() || agent.AttestationType != "join_token" {
		t.Errorf("agent's record: %+v", agent)
	}
}

// TestS03_OneTokenOneAgent: of 200 attempts at once, each with its own key, one
// gets in; its key may come again, no other ever.
func TestS03_OneTokenOneAgent(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{})
	tok := token(t, w, nil)
	var in atomic.Int64
	var winner []byte
	var attempts sync.WaitGroup
	start := make(chan struct{})
	for range 200 {
		csr := apitest.CSR(t, apitest.NewKey(t), x509.CertificateRequest{})
		conn := w.Dial(t, nil)
		attempts.Go(func() {
			<-start
			_, err := attestOver(t.Context(), conn, params("join_token", tok, csr))
			switch {
			case err == nil:
				in.Add(1)
				winner = csr
			case status.Code(err) != codes.InvalidArgument:
				t.Errorf("refused with %v, want InvalidArgument", err)
			case strings.Contains(err.Error(), tok):
				t.Error("the refusal repeats the token")
			}
		})
	}
	close(start)
	attempts.Wait()
	if n := in.Load(); n != 1 {
		t.Fatalf("%d attempts got in with one token, want 1", n)
	}
	conn := w.Dial(t, nil)
	if _, err := attestOver(t.Context(), conn, params("join_token", tok, winner)); err != nil {
		t.Errorf("the same key again: %v", err)
	}
	other := apitest.CSR(t, apitest.NewKey(t), x509.CertificateRequest{})
	if _, err := attestOver(t.Context(), conn, params("join_token", tok, other)); status.Code(err) != codes.InvalidArgument {
		t.Errorf("another key: %v, want InvalidArgument", err)
	}
}

func TestAttestRefusals(t *testing.T) {
	t.Parallel()
	result := func(id string, selectors ...attest.Selector) node.Result {
		return node.Result{AgentID: spiffeid.RequireFromString("spiffe://example.org" + id), Selectors: selectors}
	}
	w := world(t, apitest.Options{},
		liar{"liar", result("/spire/agent/join_token/x")},
		liar{"long", result("/spire/agent/long/" + strings.Repeat("x", 1000))},
		liar{"braggart", result("/spire/agent/braggart/x", attest.Selector{Type: "join_token", Value: "x"})},
	)
	csr := apitest.CSR(t, apitest.NewKey(t), x509.CertificateRequest{})
	mangled := bytes.Clone(csr)
	mangled[len(mangled)-1] ^= 1
	conn := w.Dial(t, nil)
	for name, c := range map[string]struct {
		req  *agentv1.AttestAgentRequest
		code codes.Code
		text string
	}{
		"nothing":            {&agentv1.AttestAgentRequest{}, codes.InvalidArgument, "malformed param: missing params"},
		"no data":            {&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{}}}, codes.InvalidArgument, "malformed param: missing attestation data"},
		"no CSR":             {params("puzzle", "x", nil), codes.InvalidArgument, "malformed param: missing CSR"},
		"no type":            {params("", "x", csr), codes.InvalidArgument, "malformed param: missing attestation data type"},
		"no payload":         {params("puzzle", "", csr), codes.InvalidArgument, "malformed param: missing attestation data payload"},
		"answer first":       {&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_ChallengeResponse{}}, codes.InvalidArgument, "malformed param: missing params"},
		"unknown method":     {params("quantum", "x", csr), codes.FailedPrecondition, `error getting node attestor: could not find node attestor type "quantum"`},
		"long method":        {params(strings.Repeat("q", 256), "x", csr), codes.InvalidArgument, "malformed param: attestation data type of 256 bytes is longer than 255"},
		"CSR is noise":       {params("puzzle", "x", []byte("noise")), codes.InvalidArgument, "failed to parse CSR"},
		"CSR signature":      {params("puzzle", "x", mangled), codes.InvalidArgument, "failed to parse CSR"},
		"unknown token":      {params("join_token", "nobody-made-this", csr), codes.InvalidArgument, "failed to attest: join token does not exist or has already been used"},
		"token is no token":  {params("join_token", "../x", csr), codes.InvalidArgument, "failed to attest"},
		"S20 name with path": {params("puzzle", "a%2f..", csr), codes.InvalidArgument, "failed to attest"},
		"foreign name":       {params("liar", "x", csr), codes.Internal, "failed to attest"},
		"long name":          {params("long", "x", csr), codes.Internal, "failed to attest"},
		"foreign selector":   {params("braggart", "x", csr), codes.Internal, "failed to attest"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := attestOver(t.Context(), conn, c.req)
			if status.Code(err) != c.code || !strings.HasPrefix(status.Convert(err).Message(), c.text) {
				t.Errorf("got %v, want %s: %s…", err, c.code, c.text)
			}
		})
	}
}

func TestAttestRounds(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{})
	csr := apitest.CSR(t, apitest.NewKey(t), x509.CertificateRequest{})
	conn := w.Dial(t, nil)
	for rounds, want := range map[int]codes.Code{0: codes.OK, 1: codes.OK, node.MaxRounds: codes.OK, node.MaxRounds + 1: codes.PermissionDenied} {
		_, err := attestOver(t.Context(), conn, params("puzzle", fmt.Sprint("r", rounds, "/", strings.Repeat("?", rounds)), csr))
		if status.Code(err) != want {
			t.Errorf("%d rounds: %v, want %s", rounds, err, want)
		}
	}
}

// TestS07_AttestIsBounded: what a stranger sends is refused before anything
// expensive is done with it.
func TestS07_AttestIsBounded(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{})
	csr := apitest.CSR(t, apitest.NewKey(t), x509.CertificateRequest{})
	conn := w.Dial(t, nil)
	if _, err := attestOver(t.Context(), conn, params("puzzle", "warm", csr)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		payload string
		csr     []byte
		want    codes.Code
	}{
		"payload at the limit":   {strings.Repeat("x", node.MaxMessage), csr, codes.InvalidArgument},
		"payload over the limit": {strings.Repeat("x", node.MaxMessage+1), csr, codes.InvalidArgument},
		"CSR of a megabyte":      {"x", make([]byte, 1<<20), codes.InvalidArgument},
		"RSA of 16384 bits":      {"x", hugeCSR(t, 16384, 65537), codes.InvalidArgument},
		"RSA with huge exponent": {"x", hugeCSR(t, 2048, 1<<31+1), codes.InvalidArgument},
	} {
		// The best of ten, because the machine may be busy with other tests.
		best := time.Hour
		for range 10 {
			begin := time.Now()
			_, err := attestOver(t.Context(), conn, params("puzzle", c.payload, c.csr))
			if status.Code(err) != c.want {
				t.Errorf("%s: %v, want %s", name, err, c.want)
			}
			best = min(best, time.Since(begin))
		}
		// The budget is 10 ms, without the transport of a megabyte over TLS.
		if best > 100*time.Millisecond {
			t.Errorf("%s: refused after %s at best", name, best)
		}
	}
}

// hugeCSR claims an RSA key that nobody made, with a signature of noise.
func hugeCSR(t *testing.T, bits uint, exponent int) []byte {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), bits))
	if err != nil {
		t.Fatal(err)
	}
	n.SetBit(n, int(bits)-1, 1).SetBit(n, 0, 1)
	spki, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: n, E: exponent})
	if err != nil {
		t.Fatal(err)
	}
	type info struct { // CertificationRequestInfo, RFC 2986, 4.1
		Version    int
		Subject    pkix.RDNSequence
		PublicKey  asn1.RawValue
		Attributes asn1.RawValue `asn1:"tag:0"`
	}
	der, err := asn1.Marshal(struct {
		Info      info
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		info{PublicKey: asn1.RawValue{FullBytes: spki}, Attributes: asn1.RawValue{FullBytes: []byte{0xa0, 0}}},
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue},
		asn1.BitString{Bytes: make([]byte, bits/8), BitLength: int(bits)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestS07_AttestIsBoundedInTime: a stranger who says nothing, or stops in the
// middle, is sent away.
func TestS07_AttestIsBoundedInTime(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{AttestTimeout: 50 * time.Millisecond})
	csr := apitest.CSR(t, apitest.NewKey(t), x509.CertificateRequest{})
	for name, first := range map[string]*agentv1.AttestAgentRequest{"silent": nil, "no answer": params("puzzle", "x/??", csr)} {
		s, err := agentv1.NewAgentClient(w.Dial(t, nil)).AttestAgent(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if first != nil {
			if err := s.Send(first); err != nil {
				t.Fatal(err)
			}
		}
		for err == nil {
			_, err = s.Recv()
		}
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("%s: %v, want DeadlineExceeded", name, err)
		}
	}
}

// broken is a verifier with a fault that evidence can set off.
type broken struct{}

func (broken) Name() string { return "broken" }

func (broken) Verify(context.Context, node.Attempt) (node.Result, error) { panic("canary-panic") }

// TestS07_AttestPanics: a stranger's evidence that sets off a fault does not end
// the server, although the conversation has a goroutine of its own.
func TestS07_AttestPanics(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{}, broken{})
	csr := apitest.CSR(t, apitest.NewKey(t), x509.CertificateRequest{})
	conn := w.Dial(t, nil)
	_, err := attestOver(t.Context(), conn, params("broken", "x", csr))
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "canary") {
		t.Errorf("got %v, want Internal without the reason", err)
	}
	if _, err := attestOver(t.Context(), conn, params("puzzle", "x", csr)); err != nil {
		t.Errorf("the next attestation: %v", err)
	}
}

func TestAttestAgain(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{}, puzzle{reattest: true})
	key := apitest.NewKey(t)
	first := params("puzzle", "one", apitest.CSR(t, key, x509.CertificateRequest{}))
	got, err := attestOver(t.Context(), w.Dial(t, nil), first)
	if err != nil {
		t.Fatal(err)
	}
	if !got.GetReattestable() {
		t.Error("the agent is not told that it can attest again")
	}
	old := agentv1.NewAgentClient(w.Dial(t, certOf(t, got.GetSvid(), key)))
	again, err := attestOver(t.Context(), w.Dial(t, nil), first)
	if err != nil {
		t.Fatal(err)
	}
	// As after a renewal, both SVIDs are good until the new one is used.
	if _, err := old.PostStatus(t.Context(), &agentv1.PostStatusRequest{}); err != nil {
		t.Errorf("with the old SVID: %v", err)
	}
	renewed := agentv1.NewAgentClient(w.Dial(t, certOf(t, again.GetSvid(), key)))
	if _, err := renewed.PostStatus(t.Context(), &agentv1.PostStatusRequest{}); err != nil {
		t.Errorf("with the new SVID: %v", err)
	}
	if _, err := old.PostStatus(t.Context(), &agentv1.PostStatusRequest{}); reason(err) != types.PermissionDeniedDetails_AGENT_NOT_ACTIVE {
		t.Errorf("with the old SVID after the new one was used: %v, want AGENT_NOT_ACTIVE", err)
	}
	if _, err := renewed.RenewAgent(t.Context(), &agentv1.RenewAgentRequest{}); reason(err) != types.PermissionDeniedDetails_AGENT_MUST_REATTEST {
		t.Errorf("renewing: %v, want AGENT_MUST_REATTEST", err)
	}
}

func TestAttestFirstUse(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{}) // Its puzzles are good once.
	conn := w.Dial(t, nil)
	req := func() *agentv1.AttestAgentRequest {
		return params("puzzle", "one", apitest.CSR(t, apitest.NewKey(t), x509.CertificateRequest{}))
	}
	if _, err := attestOver(t.Context(), conn, req()); err != nil {
		t.Fatal(err)
	}
	if _, err := attestOver(t.Context(), conn, req()); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the second time: %v, want PermissionDenied", err)
	}
	id := &types.SPIFFEID{TrustDomain: "example.org", Path: "/spire/agent/puzzle/one"}
	if _, err := agentv1.NewAgentClient(w.Local(t)).DeleteAgent(t.Context(), &agentv1.DeleteAgentRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	// Evicting lets it in; once, however many come at the same time.
	var admitted atomic.Int32
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			switch _, err := attestOver(t.Context(), conn, req()); status.Code(err) {
			case codes.OK:
				admitted.Add(1)
			case codes.PermissionDenied:
			default:
				t.Errorf("at once: %v", err)
			}
		})
	}
	all.Wait()
	if n := admitted.Load(); n != 1 {
		t.Errorf("after it was evicted, %d of 16 were let in, want 1", n)
	}
}

// TestAttestBannedByToken: whoever comes back with the token of a banned agent,
// with another key even, hears of the ban and not of the token.
func TestAttestBannedByToken(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{})
	conn, tok := w.Dial(t, nil), token(t, w, nil)
	got, err := attestOver(t.Context(), conn, params("join_token", tok, apitest.CSR(t, apitest.NewKey(t), x509.CertificateRequest{})))
	if err != nil {
		t.Fatal(err)
	}
	admin := agentv1.NewAgentClient(w.Local(t))
	if _, err := admin.BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: got.GetSvid().GetId()}); err != nil {
		t.Fatal(err)
	}
	again := params("join_token", tok, apitest.CSR(t, apitest.NewKey(t), x509.CertificateRequest{}))
	if _, err := attestOver(t.Context(), conn, again); reason(err) != types.PermissionDeniedDetails_AGENT_BANNED ||
		!strings.HasPrefix(status.Convert(err).Message(), "failed to attest: agent is banned") {
		t.Errorf("while it is banned: %v", err)
	}
	if _, err := admin.DeleteAgent(t.Context(), &agentv1.DeleteAgentRequest{Id: got.GetSvid().GetId()}); err != nil {
		t.Fatal(err)
	}
	if _, err := attestOver(t.Context(), conn, again); status.Code(err) != codes.InvalidArgument {
		t.Errorf("after the ban was lifted, with a token that is used up: %v, want InvalidArgument", err)
	}
}

func TestAttestBanned(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{}, puzzle{reattest: true})
	conn := w.Dial(t, nil)
	req := params("puzzle", "one", apitest.CSR(t, apitest.NewKey(t), x509.CertificateRequest{}))
	got, err := attestOver(t.Context(), conn, req)
	if err != nil {
		t.Fatal(err)
	}
	admin := agentv1.NewAgentClient(w.Local(t))
	if _, err := admin.BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: got.GetSvid().GetId()}); err != nil {
		t.Fatal(err)
	}
	_, err = attestOver(t.Context(), conn, req)
	if status.Code(err) != codes.PermissionDenied || reason(err) != types.PermissionDeniedDetails_AGENT_BANNED {
		t.Errorf("banned: %v, want PermissionDenied, AGENT_BANNED", err)
	}
	if _, err := admin.DeleteAgent(t.Context(), &agentv1.DeleteAgentRequest{Id: got.GetSvid().GetId()}); err != nil {
		t.Fatal(err)
	}
	if _, err := attestOver(t.Context(), conn, req); err != nil {
		t.Errorf("after the ban was lifted: %v", err)
	}
}

// TestS24_SubjectIsTheServers: of an agent's CSR only the key is used.
func TestS24_SubjectIsTheServers(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{})
	key := apitest.NewKey(t)
	csr := apitest.CSR(t, key, x509.CertificateRequest{
		Subject:         pkix.Name{CommonName: "root", Organization: []string{"evil"}},
		DNSNames:        []string{"server.example.org"},
		EmailAddresses:  []string{"a@example.org"},
		URIs:            []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/spire/server"}},
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}, // CA:TRUE
	})
	got, err := attestOver(t.Context(), w.Dial(t, nil), params("puzzle", "one", csr))
	if err != nil {
		t.Fatal(err)
	}
	leaf := certOf(t, got.GetSvid(), key).Leaf
	switch {
	case len(leaf.URIs) != 1 || leaf.URIs[0].Path != "/spire/agent/puzzle/one":
		t.Errorf("URI SANs %v", leaf.URIs)
	case len(leaf.DNSNames)+len(leaf.EmailAddresses)+len(leaf.IPAddresses) != 0:
		t.Errorf("other SANs %v %v", leaf.DNSNames, leaf.EmailAddresses)
	case leaf.IsCA:
		t.Error("it is a CA")
	case strings.Contains(leaf.Subject.String(), "evil") || strings.Contains(leaf.Subject.String(), "root"):
		t.Errorf("subject %s", leaf.Subject)
	}
}

// TestS05_AttestLogsNoSecret: neither a token, good or bad, nor a payload is in
// the log or the audit records.
func TestS05_AttestLogsNoSecret(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	w := world(t, apitest.Options{Log: slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})})
	csr := apitest.CSR(t, apitest.NewKey(t), x509.CertificateRequest{})
	conn := w.Dial(t, nil)
	for _, payload := range []string{"canary-unknown", "canary/bad"} {
		if _, err := attestOver(t.Context(), conn, params("join_token", payload, csr)); err == nil {
			t.Fatal("a bad token was taken")
		} else if strings.Contains(err.Error(), "canary") {
			t.Errorf("the refusal repeats the token: %v", err)
		}
	}
	admin := agentv1.NewAgentClient(w.Local(t))
	if _, err := admin.CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 60, Token: "canary-unused"}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 60, Token: "canary-unused"}); status.Code(err) != codes.AlreadyExists {
		t.Fatalf("the same token again: %v, want AlreadyExists", err)
	}
	if text := log.String(); text == "" || strings.Contains(text, "canary") {
		t.Errorf("the log is empty or has a token:\n%s", text)
	}
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestAttestHeals: whichever store write of an attestation fails, committed or
// not, the agent gets in by trying again with the same token and key.
func TestAttestHeals(t *testing.T) {
	t.Parallel()
	for write := int64(1); write <= 2; write++ {
		for _, committed := range []bool{false, true} {
			t.Run(fmt.Sprintf("write %d, committed %v", write, committed), func(t *testing.T) {
				t.Parallel()
				var faults apitest.Faults
				w := world(t, apitest.Options{Wrap: faults.Wrap})
				tok := token(t, w, nil)
				key := apitest.NewKey(t)
				req := params("join_token", tok, apitest.CSR(t, key, x509.CertificateRequest{}))
				conn := w.Dial(t, nil)
				faults.FailAt(write, committed)
				if _, err := attestOver(t.Context(), conn, req); status.Code(err) != codes.Unavailable {
					t.Fatalf("with the write failing: %v, want Unavailable", err)
				}
				got, err := attestOver(t.Context(), conn, req)
				if err != nil {
					t.Fatalf("trying again: %v", err)
				}
				client := agentv1.NewAgentClient(w.Dial(t, certOf(t, got.GetSvid(), key)))
				if _, err := client.PostStatus(t.Context(), &agentv1.PostStatusRequest{}); err != nil {
					t.Errorf("with the SVID: %v", err)
				}
			})
		}
	}
}
