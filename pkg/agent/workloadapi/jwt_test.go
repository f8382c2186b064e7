package workloadapi_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/agent/cachetest"
	"github.com/credence-id/credence/pkg/agent/workloadapi"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func newForeign(t testing.TB, td string) *cachetest.Server {
	t.Helper()
	return cachetest.New(t, td)
}

func keys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func jwtBundle(t testing.TB, w *world) *jwtbundle.Bundle {
	t.Helper()
	s, err := w.client.FetchJWTBundles(w.ctx(), &workload.JWTBundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := jwtbundle.Parse(w.server.TrustDomain, recv(t, s).GetBundles()["spiffe://example.org"])
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestValidateJWTSVID(t *testing.T) {
	t.Parallel()
	w := newWorld(t, option{config: func(c *workloadapi.Config) { c.AllowedForeignJWTClaims = []string{"shown"} }})
	foreign := newForeign(t, "foreign.org")
	e := w.server.Entry("e1", "/one", "a")
	e.FederatesWith = []string{"foreign.org"}
	w.server.Put(e)
	w.sync()
	d := w.server.Put()
	d.Bundles = append(d.Bundles, foreign.Bundle())
	if err := w.cache.Apply(d); err != nil {
		t.Fatal(err)
	}
	exp := time.Now().Add(time.Minute).Unix()
	claims := func(td string) map[string]any {
		return map[string]any{"sub": "spiffe://" + td + "/x", "aud": "me", "exp": exp, "shown": map[string]any{"n": []any{1.5, true, nil}}, "hidden": "h"}
	}
	for _, tc := range []struct {
		name  string
		token string
		want  map[string]any
	}{
		{"own", w.server.SignJWT(claims("example.org")), map[string]any{
			"sub": "spiffe://example.org/x", "aud": []any{"me"}, "exp": float64(exp), "shown": map[string]any{"n": []any{1.5, true, nil}}, "hidden": "h",
		}},
		{"foreign", foreign.SignJWT(claims("foreign.org")), map[string]any{
			"sub": "spiffe://foreign.org/x", "aud": []any{"me"}, "exp": float64(exp), "shown": map[string]any{"n": []any{1.5, true, nil}},
		}},
	} {
		resp, err := w.client.ValidateJWTSVID(w.ctx(), &workload.ValidateJWTSVIDRequest{Audience: "me", Svid: tc.token})
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if resp.GetSpiffeId() != tc.want["sub"] {
			t.Errorf("%s: SPIFFE ID %s", tc.name, resp.GetSpiffeId())
		}
		if diff := cmp.Diff(tc.want, resp.GetClaims().AsMap()); diff != "" {
			t.Errorf("%s: claims (-want +got):\n%s", tc.name, diff)
		}
	}
	// A workload without identity has our own bundle only.
	w.attestor.set(nil, "nobody")
	if _, err := w.client.ValidateJWTSVID(w.ctx(), &workload.ValidateJWTSVIDRequest{Audience: "me", Svid: w.server.SignJWT(claims("example.org"))}); err != nil {
		t.Errorf("without identity: %v", err)
	}
	if _, err := w.client.ValidateJWTSVID(w.ctx(), &workload.ValidateJWTSVIDRequest{Audience: "me", Svid: foreign.SignJWT(claims("foreign.org"))}); err == nil {
		t.Error("without identity, a token of a federated trust domain was accepted")
	}
}

// TestRevokedKeysTokensAreRefused: a token that was valid a moment ago, and is
// remembered for that, is refused once its key has left the bundle.
func TestRevokedKeysTokensAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.sync()
	token := w.server.SignJWT(map[string]any{"sub": "spiffe://example.org/x", "aud": "me", "exp": time.Now().Add(time.Minute).Unix()})
	validate := func() error {
		_, err := w.client.ValidateJWTSVID(w.ctx(), &workload.ValidateJWTSVIDRequest{Audience: "me", Svid: token})
		return err
	}
	for range 2 {
		if err := validate(); err != nil {
			t.Fatal(err)
		}
	}
	w.server.RotateJWT()
	revoked := w.server.Bundle()
	revoked.Bundle.JwtAuthorities = revoked.Bundle.JwtAuthorities[1:]
	d := w.server.Put()
	d.Bundles = append(d.Bundles, revoked)
	if err := w.cache.Apply(d); err != nil {
		t.Fatal(err)
	}
	if err := validate(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("after its key was revoked: %v", err)
	}
}
