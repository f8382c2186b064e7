package peers

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	_ "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

// TestSameAnswers makes every call of the table against a real SPIRE server and
// ours, and compares the answers field by field.
func TestSameAnswers(t *testing.T) {
	t.Parallel()
	foreign := spire(t)
	vars, key := sharedValues(t)
	theirs, mine := newPlayer(startSide(t, foreign), vars), newPlayer(startSide(t, ours(t)), vars)
	theirs.identities(t, key)
	mine.identities(t, key)
	played := map[string]bool{}
	for _, c := range slices.Concat(entryCalls, agentCalls, svidCalls, bundleCalls, federationCalls, endCalls, adminCalls) {
		if played[c.name] {
			t.Fatalf("%q is twice in the table", c.name)
		}
		played[c.name] = true
		want, got := theirs.play(t, c), mine.play(t, c)
		t.Run(c.name, func(t *testing.T) {
			diff, reason := cmp.Diff(want, got), differences[c.name]
			switch {
			case diff != "" && reason == "":
				t.Errorf("SPIRE answers -, we answer +:\n%s", diff)
			case diff == "" && reason != "":
				t.Errorf("the answers are the same now; take it out of differences: %s", reason)
			case diff != "":
				t.Logf("differs as intended: %s\n%s", reason, diff)
			}
		})
	}
	for name := range differences {
		if !played[name] {
			t.Errorf("differences names %q, which is not in the table", name)
		}
	}
}

// sharedValues are what requests to both sides have in common, and the key of
// most of it.
func sharedValues(t *testing.T) (map[string]string, *ecdsa.PrivateKey) {
	t.Helper()
	key, other := newKey(t), newKey(t)
	id := func(s ...string) *x509.CertificateRequest {
		r := &x509.CertificateRequest{}
		for _, s := range s {
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			r.URIs = append(r.URIs, u)
		}
		return r
	}
	dns, subject := id("spiffe://example.org/minted"), id("spiffe://example.org/minted")
	dns.DNSNames = []string{"a.example.org", "b.example.org"}
	subject.Subject = pkix.Name{CommonName: "me", Organization: []string{"mine"}}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"csr": newCSR(t, key, id()), "csr_other": newCSR(t, other, id()), "csr_id": newCSR(t, key, id("spiffe://example.org/minted")),
		"csr_dns": newCSR(t, key, dns), "csr_subject": newCSR(t, key, subject), "csr_two": newCSR(t, key, id("spiffe://example.org/a", "spiffe://example.org/b")),
		"csr_foreign": newCSR(t, key, id("spiffe://other.org/a")), "csr_td": newCSR(t, key, id("spiffe://example.org")),
		"public_key": string(public), "ca": newCA(t, key, 1), "ca2": newCA(t, key, 2),
	}, key
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newCSR(t *testing.T, key crypto.Signer, tmpl *x509.CertificateRequest) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(der)
}

func newCA(t *testing.T, key crypto.Signer, serial int64) string {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: "spiffe", Host: "other.org"}},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(der)
}

// identities connects as each kind of caller.
func (p *player) identities(t *testing.T, key crypto.Signer) {
	t.Helper()
	for _, as := range []caller{admin, downstream, workload} {
		if as != workload {
			entry := &types.Entry{
				SpiffeId: apiID("/" + string(as)), ParentId: apiID("/elsewhere"), Selectors: []*types.Selector{{Type: "none", Value: string(as)}},
				Admin: as == admin, Downstream: as == downstream,
			}
			resp, err := entryv1.NewEntryClient(p.local).BatchCreateEntry(bounded(t), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{entry}})
			if err != nil || resp.GetResults()[0].GetStatus().GetCode() != 0 {
				t.Fatalf("%s: an entry for %s: %v, %v", p.bin.name, as, resp, err)
			}
		}
		csr := newCSR(t, key, &x509.CertificateRequest{URIs: []*url.URL{{Scheme: "spiffe", Host: testTD.Name(), Path: "/" + string(as)}}})
		resp, err := svidv1.NewSVIDClient(p.local).MintX509SVID(bounded(t), &svidv1.MintX509SVIDRequest{Csr: []byte(csr)})
		if err != nil {
			t.Fatalf("%s: an SVID for %s: %v", p.bin.name, as, err)
		}
		p.conns[as] = p.tcp(&tls.Certificate{Certificate: resp.GetSvid().GetCertChain(), PrivateKey: key})
	}
	token, err := agentv1.NewAgentClient(p.local).CreateJoinToken(bounded(t), &agentv1.CreateJoinTokenRequest{Ttl: 600})
	if err != nil {
		t.Fatalf("%s: a join token: %v", p.bin.name, err)
	}
	resp, err := p.attest(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data: &types.AttestationData{Type: "join_token", Payload: []byte(token.GetValue())}, Params: &agentv1.AgentX509SVIDParams{Csr: []byte(p.vars["csr"])},
	}}})
	if err != nil {
		t.Fatalf("%s: attesting: %v", p.bin.name, err)
	}
	p.vars["agent_path"] = resp.GetResult().GetSvid().GetId().GetPath()
	p.conns[agent] = p.tcp(&tls.Certificate{Certificate: resp.GetResult().GetSvid().GetCertChain(), PrivateKey: key})
}

func apiID(path string) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: testTD.Name(), Path: path}
}

// attest sends one message as a new agent and returns what comes back.
func (p *player) attest(req *agentv1.AttestAgentRequest) (*agentv1.AttestAgentResponse, error) {
	stream, err := agentv1.NewAgentClient(p.conns[anyone]).AttestAgent(bounded(p.t))
	if err != nil {
		return nil, err
	}
	if err := stream.Send(req); err != nil {
		return nil, err
	}
	return stream.Recv()
}

func attestWith(text string) func(*player) (proto.Message, error) {
	return func(p *player) (proto.Message, error) {
		req := new(agentv1.AttestAgentRequest)
		if err := prototext.Unmarshal([]byte(p.fill(text)), req); err != nil {
			return nil, err
		}
		resp, err := p.attest(req)
		return resp, err
	}
}

var errNotYet = errors.New("not yet")

// awaitAuthorized waits until the agent is given the entry: SPIRE's server looks
// into its database from time to time.
func awaitAuthorized(name string) func(*player) (proto.Message, error) {
	return func(p *player) (proto.Message, error) {
		eventually(p.t, p.bin.name+" authorizes the entry", func() error {
			resp, err := entryv1.NewEntryClient(p.conns[agent]).GetAuthorizedEntries(bounded(p.t), &entryv1.GetAuthorizedEntriesRequest{})
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(resp.GetEntries(), func(e *types.Entry) bool { return e.GetId() == p.vars[name] }) {
				return fmt.Errorf("%w: %d entries", errNotYet, len(resp.GetEntries()))
			}
			return nil
		})
		return &entryv1.GetAuthorizedEntriesRequest{}, nil
	}
}

// syncEntries sends messages one after the other, as an agent does, and returns
// all that comes as one answer.
func syncEntries(texts ...string) func(*player) (proto.Message, error) {
	return func(p *player) (proto.Message, error) {
		conn := p.conns[p.as]
		stream, err := entryv1.NewEntryClient(conn).SyncAuthorizedEntries(bounded(p.t))
		if err != nil {
			return nil, err
		}
		all := new(entryv1.SyncAuthorizedEntriesResponse)
		for _, text := range texts {
			req := new(entryv1.SyncAuthorizedEntriesRequest)
			if err := prototext.Unmarshal([]byte(p.fill(text)), req); err != nil {
				return nil, err
			}
			if err := stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
				return nil, err
			}
			resp, err := stream.Recv()
			if err != nil {
				return nil, err
			}
			proto.Merge(all, resp)
		}
		return all, nil
	}
}

// allPages lists the entries two by two, and returns them as one list.
func allPages(p *player) (proto.Message, error) {
	all := new(entryv1.ListEntriesResponse)
	for token := ""; ; {
		resp, err := entryv1.NewEntryClient(p.local).ListEntries(bounded(p.t), &entryv1.ListEntriesRequest{
			PageSize: 2, PageToken: token, OutputMask: &types.EntryMask{SpiffeId: true},
		})
		if err != nil {
			return nil, err
		}
		if len(resp.GetEntries()) > 2 {
			return nil, fmt.Errorf("a page of %d", len(resp.GetEntries()))
		}
		all.Entries = append(all.Entries, resp.GetEntries()...)
		if token = resp.GetNextPageToken(); token == "" {
			slices.SortFunc(all.Entries, func(a, b *types.Entry) int {
				return strings.Compare(a.GetSpiffeId().GetPath(), b.GetSpiffeId().GetPath())
			})
			return all, nil
		}
	}
}
