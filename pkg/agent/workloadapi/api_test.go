package workloadapi_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/agent/workloadapi"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
)

// calls is each RPC of the Workload API, up to its first answer.
func (w *world) calls() map[string]func(context.Context) error {
	c := w.client
	return map[string]func(context.Context) error{
		"FetchX509SVID": func(ctx context.Context) error {
			s, err := c.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"FetchX509Bundles": func(ctx context.Context) error {
			s, err := c.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"FetchJWTBundles": func(ctx context.Context) error {
			s, err := c.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"FetchJWTSVID": func(ctx context.Context) error {
			_, err := c.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"x"}})
			return err
		},
		"ValidateJWTSVID": func(ctx context.Context) error {
			_, err := c.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "x", Svid: "y"})
			return err
		},
	}
}

func TestSecurityHeader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.server.Put(w.server.Entry("e1", "/one", "a"))
	w.sync()
	for name, call := range w.calls() {
		for _, md := range []metadata.MD{nil, metadata.Pairs("workload.spiffe.io", "false"), metadata.Pairs("workload.spiffe.io", ""),
			metadata.Pairs("workload.spiffe.io", "true", "workload.spiffe.io", "true"), metadata.Pairs("broker.spiffe.io", "true")} {
			err := call(metadata.NewOutgoingContext(t.Context(), md))
			t.Log(name, md)
			wantStatus(t, err, codes.InvalidArgument, "security header missing from request")
		}
	}
}

func TestNoIdentity(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.server.Put(w.server.Entry("e1", "/one", "another"))
	w.sync()
	for name, call := range w.calls() {
		if name == "ValidateJWTSVID" {
			continue // a verifier without identity may validate, as with SPIRE
		}
		t.Log(name)
		wantStatus(t, call(w.ctx()), codes.PermissionDenied, "no identity issued")
	}
}

func TestUnauthenticatedVerifiers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, option{config: func(c *workloadapi.Config) { c.AllowUnauthenticatedVerifiers = true }})
	federated := w.server.Entry("e1", "/one", "another")
	federated.FederatesWith = []string{"foreign.org"}
	w.server.Put(federated)
	w.sync()
	for name, call := range w.calls() {
		err := call(w.ctx())
		t.Log(name)
		switch name {
		case "FetchX509SVID", "FetchJWTSVID":
			wantStatus(t, err, codes.PermissionDenied, "no identity issued")
		case "ValidateJWTSVID":
			wantStatus(t, err, codes.InvalidArgument, "")
		default:
			wantStatus(t, err, codes.OK, "")
		}
	}
	s, err := w.client.FetchX509Bundles(w.ctx(), &workload.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := recv(t, s).GetBundles(); len(got) != 1 || got["spiffe://example.org"] == nil {
		t.Errorf("bundles of %d trust domains, want our own", len(got))
	}
}

func TestX509SVIDs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one, two := w.server.Entry("e1", "/one", "a"), w.server.Entry("e2", "/two", "a")
	one.Hint, two.DnsNames = "internal", []string{"two.example.org"}
	w.server.Put(one, two, w.server.Entry("e3", "/three", "a", "b"))
	w.sync()
	s := w.x509()
	first := recv(t, s)
	if diff := cmp.Diff([]string{"spiffe://example.org/one", "spiffe://example.org/two"}, paths(first)); diff != "" {
		t.Fatalf("identities (-want +got):\n%s", diff)
	}
	for _, v := range first.GetSvids() {
		bundle, err := x509bundle.ParseRaw(w.server.TrustDomain, v.GetBundle())
		if err != nil {
			t.Fatal(err)
		}
		svid, err := x509svid.ParseRaw(v.GetX509Svid(), v.GetX509SvidKey())
		if err != nil {
			t.Fatal(err)
		}
		if id, _, err := x509svid.Verify(svid.Certificates, bundle); err != nil || id.String() != v.GetSpiffeId() {
			t.Errorf("%s does not verify: %v, %v", v.GetSpiffeId(), id, err)
		}
		if _, err := x509.ParsePKCS8PrivateKey(v.GetX509SvidKey()); err != nil {
			t.Error(err)
		}
	}
	if got := first.GetSvids()[0].GetHint(); got != "internal" {
		t.Errorf("hint %q", got)
	}

	// A change of something else is not sent.
	if err := w.cache.Apply(w.server.Put(w.server.Entry("e4", "/four", "another"))); err != nil {
		t.Fatal(err)
	}
	w.sync()
	if err := w.cache.Apply(w.server.Put(w.server.Entry("e5", "/five", "a"))); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"spiffe://example.org/one", "spiffe://example.org/two", "spiffe://example.org/five"}, paths(recv(t, s))); diff != "" {
		t.Errorf("after a new entry (-want +got):\n%s", diff)
	}
	if err := w.cache.Apply(w.server.Remove("e1", "e2")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"spiffe://example.org/five"}, paths(recv(t, s))); diff != "" {
		t.Errorf("after a removal (-want +got):\n%s", diff)
	}
	if err := w.cache.Apply(w.server.Remove("e5")); err != nil {
		t.Fatal(err)
	}
	_, err := s.Recv()
	wantStatus(t, err, codes.PermissionDenied, "no identity issued")
}

func TestBundles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	foreign, other := newForeign(t, "foreign.org"), newForeign(t, "other.org")
	e := w.server.Entry("e1", "/one", "a")
	e.FederatesWith = []string{"foreign.org"}
	w.server.Put(e)
	w.sync()
	d := w.server.Put()
	d.Bundles = append(d.Bundles, foreign.Bundle(), other.Bundle())
	if err := w.cache.Apply(d); err != nil {
		t.Fatal(err)
	}
	want := []string{"spiffe://example.org", "spiffe://foreign.org"}

	x, err := w.client.FetchX509Bundles(w.ctx(), &workload.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first := recv(t, x)
	if diff := cmp.Diff(want, keys(first.GetBundles())); diff != "" {
		t.Errorf("X.509 bundles (-want +got):\n%s", diff)
	}
	for td, raw := range first.GetBundles() {
		if _, err := x509bundle.ParseRaw(spiffeid.RequireTrustDomainFromString(td), raw); err != nil {
			t.Error(err)
		}
	}
	j, err := w.client.FetchJWTBundles(w.ctx(), &workload.JWTBundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	docs := recv(t, j).GetBundles()
	if diff := cmp.Diff(want, keys(docs)); diff != "" {
		t.Errorf("JWT bundles (-want +got):\n%s", diff)
	}
	var doc struct {
		Keys []map[string]string `json:"keys"`
	}
	if err := json.Unmarshal(docs["spiffe://example.org"], &doc); err != nil {
		t.Fatal(err)
	}
	if k := doc.Keys[0]; len(doc.Keys) != 1 || k["kid"] != "example.org-1" || k["kty"] != "EC" || k["use"] != "" || k["x"] == "" || k["d"] != "" {
		t.Errorf("JWKS: %v", doc)
	}

	// A rotated X509-SVID changes no bundle; a new JWT authority changes one kind.
	e.DnsNames = []string{"x.example.org"}
	if err := w.cache.Apply(w.server.Put(e)); err != nil {
		t.Fatal(err)
	}
	s := w.x509()
	recv(t, s)
	w.server.RotateJWT()
	w.sync()
	if b, err := jwtbundle.Parse(w.server.TrustDomain, recv(t, j).GetBundles()["spiffe://example.org"]); err != nil || len(b.JWTAuthorities()) != 2 {
		t.Errorf("%v, %v", b, err)
	}
	w.server.RotateX509()
	w.sync()
	if diff := cmp.Diff(first, recv(t, x), protoEqual); diff == "" {
		t.Error("the X.509 bundles were sent again without a change")
	} else if certs, err := x509.ParseCertificates(recv(t, s).GetSvids()[0].GetBundle()); err != nil || len(certs) != 2 {
		t.Errorf("%d authorities with the SVID, %v", len(certs), err)
	}
}

func TestJWTSVIDs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one, two := w.server.Entry("e1", "/one", "a"), w.server.Entry("e2", "/two", "a")
	two.Hint = "external"
	w.server.Put(one, two)
	w.sync()
	fetch := func(id string, audience ...string) (*workload.JWTSVIDResponse, error) {
		return w.client.FetchJWTSVID(w.ctx(), &workload.JWTSVIDRequest{SpiffeId: id, Audience: audience})
	}
	all, err := fetch("", "x", "y")
	if err != nil {
		t.Fatal(err)
	}
	bundle := jwtBundle(t, w)
	for i, v := range all.GetSvids() {
		svid, err := jwtsvid.ParseAndValidate(v.GetSvid(), bundle, []string{"y"})
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"spiffe://example.org/one", "spiffe://example.org/two"}[i]
		if svid.ID.String() != want || v.GetSpiffeId() != want || v.GetHint() != []string{"", "external"}[i] {
			t.Errorf("token %d is of %s for %s with hint %q", i, svid.ID, v.GetSpiffeId(), v.GetHint())
		}
	}
	only, err := fetch("spiffe://example.org/two", "x", "y")
	if err != nil || len(only.GetSvids()) != 1 || only.GetSvids()[0].GetSpiffeId() != "spiffe://example.org/two" {
		t.Errorf("asked for one: %v, %v", only, err)
	}
	_, err = fetch("spiffe://example.org/not-mine", "x")
	wantStatus(t, err, codes.PermissionDenied, "no identity issued")
	_, err = fetch("")
	wantStatus(t, err, codes.InvalidArgument, "audience must be specified")
	_, err = fetch("", "", "")
	wantStatus(t, err, codes.InvalidArgument, "audience must be specified")
	_, err = fetch("not an ID", "x")
	wantStatus(t, err, codes.InvalidArgument, "")
	w.server.SetDown(errors.New("the server is away"))
	_, err = fetch("", "z")
	wantStatus(t, err, codes.Unavailable, "identity is not available now: the server is away")
	if _, err = fetch("", "x", "y"); err != nil {
		t.Errorf("a token that is held: %v", err)
	}
}

func TestS08_AudienceLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.server.Put(w.server.Entry("e1", "/one", "a"))
	w.sync()
	long := func(n int) string { return fmt.Sprintf("%0*d", n, 0) }
	for _, tc := range []struct {
		name string
		n    int
		size int
		want codes.Code
	}{
		{"count", 99, 1, codes.OK}, {"count", 100, 1, codes.OK}, {"count", 101, 1, codes.InvalidArgument},
		{"size", 1, 2047, codes.OK}, {"size", 1, 2048, codes.OK}, {"size", 1, 2049, codes.InvalidArgument},
		{"message", 1, 300 << 10, codes.ResourceExhausted},
	} {
		var audience []string
		for i := range tc.n {
			audience = append(audience, long(tc.size-1)+string(rune('a'+i%26)))
		}
		_, err := w.client.FetchJWTSVID(w.ctx(), &workload.JWTSVIDRequest{Audience: audience})
		t.Log(tc)
		wantStatus(t, err, tc.want, "")
	}
}

func TestUnimplementedProfiles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.sync()
	s, err := w.client.FetchWITSVID(w.ctx(), &workload.WITSVIDRequest{})
	if err == nil {
		_, err = s.Recv()
	}
	wantStatus(t, err, codes.Unimplemented, "")
	b, err := w.client.FetchWITBundles(w.ctx(), &workload.WITBundlesRequest{})
	if err == nil {
		_, err = b.Recv()
	}
	wantStatus(t, err, codes.Unimplemented, "")
}

func TestHealthAndReflection(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	health, err := grpc_health_v1.NewHealthClient(w.conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for recv(t, health).GetStatus() != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		continue // what the service says before it has looked
	}
	w.sync()
	if got := recv(t, health).GetStatus(); got != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health in sync is %v", got)
	}
	w.cache.Away(errors.New("gone"))
	r, err := grpc_health_v1.NewHealthClient(w.conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "SpiffeWorkloadAPI"})
	if err != nil || r.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health while the server is away: %v, %v", r, err)
	}
	refl, err := grpc_reflection_v1.NewServerReflectionClient(w.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := refl.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	list, err := refl.Recv()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, s := range list.GetListServicesResponse().GetService() {
		found = found || s.GetName() == "SpiffeWorkloadAPI"
	}
	if !found {
		t.Errorf("reflection lists %v", list)
	}
}

// TestAttestedAgain: a stream follows what the attestors say of its process.
func TestAttestedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.server.Put(w.server.Entry("e1", "/one", "a"), w.server.Entry("e2", "/two", "b"))
	w.sync()
	s := w.x509()
	recv(t, s)
	w.attestor.set(nil, "a", "more") // nothing that matters
	w.attestor.set(nil, "a", "b")
	if diff := cmp.Diff([]string{"spiffe://example.org/one", "spiffe://example.org/two"}, paths(recv(t, s))); diff != "" {
		t.Errorf("with another selector (-want +got):\n%s", diff)
	}
	w.attestor.set(errors.New("attestor is broken"))
	_, err := s.Recv()
	wantStatus(t, err, codes.PermissionDenied, "no identity issued")
}

func TestStreamWaitsForFirstSync(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.server.Put(w.server.Entry("e1", "/one", "a"))
	s := w.x509()
	time.Sleep(50 * time.Millisecond)
	w.sync()
	if n := len(recv(t, s).GetSvids()); n != 1 {
		t.Errorf("%d SVIDs", n)
	}
}

func TestMintFailureIsNotADenial(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.sync()
	w.server.SetDown(errors.New("the server is away"))
	if err := w.cache.Apply(w.server.Put(w.server.Entry("e1", "/one", "a"))); err != nil {
		t.Fatal(err)
	}
	_, err := w.x509().Recv()
	wantStatus(t, err, codes.Unavailable, "identity is not available now: the server is away")
	// Verifiers need no SVID.
	b, err := w.client.FetchX509Bundles(w.ctx(), &workload.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	recv(t, b)
	w.server.SetDown(nil)
	w.sync()
	recv(t, w.x509())
}

func TestS18_BannedAgentEndsItsStreams(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.server.Put(w.server.Entry("e1", "/one", "a"))
	w.sync()
	s := w.x509()
	recv(t, s)
	b, err := w.client.FetchX509Bundles(w.ctx(), &workload.X509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	recv(t, b)
	start := time.Now()
	w.cache.Wipe()
	_, err = s.Recv()
	wantStatus(t, err, codes.PermissionDenied, "no identity issued")
	_, err = b.Recv()
	wantStatus(t, err, codes.PermissionDenied, "no identity issued")
	if d := time.Since(start); d > time.Second {
		t.Errorf("the streams ended after %s", d)
	}
	for name, call := range w.calls() {
		err := call(w.ctx())
		if name == "ValidateJWTSVID" {
			wantStatus(t, err, codes.InvalidArgument, "")
			continue
		}
		wantStatus(t, err, codes.PermissionDenied, "no identity issued")
	}
}
