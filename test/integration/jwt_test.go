package integration

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// A JWT-SVID from the Workload API is good for those who never heard of us: for
// go-spiffe with the bundle alone, and for an OIDC library that knows nothing of
// SPIFFE, with the same keys as a JWKS. Both refuse what they have to.
func TestAJWTSVIDIsVerifiedByStrangers(t *testing.T) {
	t.Parallel()
	const issuer, audience = "https://issuer.jwt.test", "payments"
	w := newWorld(t, "jwt")
	s := w.startServer(serverOptions{settings: `jwt_issuer = "` + issuer + `"`})
	a := w.startAgent(s, "a", agentOptions{})
	web := w.id("/web")
	s.create(w.entry("/web", a.id(), self()))
	sees(t, a, web)

	client, err := workloadapi.New(bounded(t), workloadapi.WithAddr("unix://"+a.socket()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	fetched, err := client.FetchJWTSVID(bounded(t), jwtsvid.Params{Audience: audience})
	if err != nil {
		t.Fatalf("fetching a JWT-SVID: %v", err)
	}
	token := w.secret(fetched.Marshal())
	bundles, err := client.FetchJWTBundles(bounded(t))
	if err != nil {
		t.Fatalf("fetching the bundle: %v", err)
	}
	// What a stranger is given: a document. It is the Workload API's, and the
	// operator can get the same keys from the server.
	own, err := bundles.GetJWTBundleForTrustDomain(w.td)
	if err != nil {
		t.Fatal(err)
	}
	jwks, err := own.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	shown := s.cli("bundle", "show", "-format", "spiffe")
	if want, got := keyIDs(t, jwks), keyIDs(t, []byte(shown.stdout)); !slices.Equal(want, got) {
		t.Errorf("the Workload API has the JWT keys %q, `bundle show` has %q", want, got)
	}
	tampered := strings.Join([]string{strings.Split(token, ".")[0], strings.Split(token, ".")[1], strings.Repeat("A", 86)}, ".")

	// Once the keys are at hand, nobody needs us.
	a.stop()
	s.stop()

	t.Run("go-spiffe", func(t *testing.T) {
		parsed, err := jwtbundle.Parse(w.td, jwks)
		if err != nil {
			t.Fatalf("parsing the bundle: %v", err)
		}
		svid, err := jwtsvid.ParseAndValidate(token, parsed, []string{audience})
		if err != nil {
			t.Fatalf("validating: %v", err)
		}
		if svid.ID != web {
			t.Errorf("the token is for %s, want %s", svid.ID, web)
		}
		if _, err := jwtsvid.ParseAndValidate(token, parsed, []string{"somebody-else"}); err == nil {
			t.Error("a token for another audience was accepted")
		}
		if _, err := jwtsvid.ParseAndValidate(tampered, parsed, []string{audience}); err == nil {
			t.Error("a token with another signature was accepted")
		}
	})
	t.Run("go-oidc", func(t *testing.T) {
		keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(jwks) }))
		defer keys.Close()
		verify := func(token, audience string) (*oidc.IDToken, error) {
			v := oidc.NewVerifier(issuer, oidc.NewRemoteKeySet(bounded(t), keys.URL), &oidc.Config{
				ClientID: audience, SupportedSigningAlgs: []string{oidc.ES256},
			})
			return v.Verify(bounded(t), token)
		}
		got, err := verify(token, audience)
		if err != nil {
			t.Fatalf("verifying: %v", err)
		}
		if got.Subject != web.String() || got.Issuer != issuer || !slices.Equal(got.Audience, []string{audience}) {
			t.Errorf("sub %q, iss %q, aud %q; want %s, %s, %s", got.Subject, got.Issuer, got.Audience, web, issuer, audience)
		}
		if _, err := verify(token, "somebody-else"); err == nil {
			t.Error("a token for another audience was accepted")
		}
		if _, err := verify(tampered, audience); err == nil {
			t.Error("a token with another signature was accepted")
		}
	})
}

// keyIDs are the IDs of the keys in a JWKS that are for JWT-SVIDs.
func keyIDs(t *testing.T, doc []byte) []string {
	t.Helper()
	var set struct{ Keys []json.RawMessage }
	if err := json.Unmarshal(doc, &set); err != nil {
		t.Fatalf("parsing a JWKS: %v\n%s", err, doc)
	}
	var out []string
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if err := key.UnmarshalJSON(raw); err != nil {
			t.Fatalf("parsing a key: %v", err)
		}
		if !key.IsPublic() {
			t.Errorf("the key %q is not a public one", key.KeyID)
		}
		// jwtbundle's document does not say what its keys are for.
		if len(key.Certificates) == 0 {
			out = append(out, key.KeyID)
		}
	}
	slices.Sort(out)
	return out
}
