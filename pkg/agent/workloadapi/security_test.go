package workloadapi_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/agent/cachetest"
	"github.com/credence-id/credence/pkg/agent/workloadapi"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// forge makes tokens that a server would not.
type forge struct {
	t      testing.TB
	server *cachetest.Server
}

func (f forge) claims(edit map[string]any) map[string]any {
	c := map[string]any{"sub": "spiffe://example.org/x", "aud": []string{"me"}, "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix()}
	for k, v := range edit {
		if v == nil {
			delete(c, k)
			continue
		}
		c[k] = v
	}
	return c
}

// good is signed by the authority.
func (f forge) good(edit map[string]any) string { return f.server.SignJWT(f.claims(edit)) }

// signed is signed by a key of the forger's.
func (f forge) signed(alg jose.SignatureAlgorithm, key any, kid string, header map[jose.HeaderKey]any) string {
	f.t.Helper()
	opts := (&jose.SignerOptions{}).WithType("JWT")
	maps.Copy(opts.ExtraHeaders, header)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, opts)
	if err != nil {
		f.t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(f.claims(nil)).Serialize()
	if err != nil {
		f.t.Fatal(err)
	}
	return token
}

// withHeader replaces the header of a good token.
func (f forge) withHeader(edit map[string]any) string {
	f.t.Helper()
	parts := strings.Split(f.good(nil), ".")
	raw, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err != nil {
		f.t.Fatal(err)
	}
	h := map[string]any{}
	if err := json.Unmarshal(raw, &h); err != nil {
		f.t.Fatal(err)
	}
	maps.Copy(h, edit)
	if raw, err = json.Marshal(h); err != nil {
		f.t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(raw) + "." + parts[1] + "." + parts[2]
}

// forgeries are tokens that must be refused.
func (f forge) forgeries() map[string]string {
	f.t.Helper()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		f.t.Fatal(err)
	}
	jwk := jose.JSONWebKey{Key: ec.Public(), KeyID: "example.org-1"}
	good := f.good(nil)
	parts := strings.Split(good, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"example.org-1","typ":"JWT"}`))
	hour := time.Hour
	at := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	return map[string]string{
		"no exp":                          f.good(map[string]any{"exp": nil}),
		"no aud":                          f.good(map[string]any{"aud": nil}),
		"empty aud":                       f.good(map[string]any{"aud": []string{}}),
		"no sub":                          f.good(map[string]any{"sub": nil}),
		"sub is not a SPIFFE ID":          f.good(map[string]any{"sub": "x"}),
		"another audience":                f.good(map[string]any{"aud": "you"}),
		"expired":                         f.good(map[string]any{"exp": at(-hour)}),
		"not yet valid":                   f.good(map[string]any{"nbf": at(hour)}),
		"issued in the future":            f.good(map[string]any{"iat": at(hour), "exp": at(2 * hour)}),
		"foreign trust domain":            f.good(map[string]any{"sub": "spiffe://unknown.org/x"}),
		"alg none":                        none + "." + parts[1] + ".",
		"alg none, with a signature":      none + "." + parts[1] + "." + parts[2],
		"no signature":                    parts[0] + "." + parts[1] + ".",
		"another signature":               parts[0] + "." + parts[1] + "." + strings.Split(f.good(map[string]any{"n": 1}), ".")[2],
		"HS256, keyed with the public":    f.signed(jose.HS256, []byte("0123456789abcdef0123456789abcdef"), "example.org-1", nil),
		"another key under the kid":       f.signed(jose.ES256, ec, "example.org-1", nil),
		"another key, brought along":      f.signed(jose.ES256, ec, "example.org-1", map[jose.HeaderKey]any{"jwk": jwk}),
		"RSA under the kid of an EC key":  f.signed(jose.RS256, rsaKey, "example.org-1", nil),
		"unknown kid":                     f.signed(jose.ES256, ec, "unknown", nil),
		"no kid":                          f.signed(jose.ES256, ec, "", nil),
		"typ wit+jwt":                     f.withHeader(map[string]any{"typ": "wit+jwt"}),
		"typ is no string":                f.withHeader(map[string]any{"typ": 1}),
		"alg changed to RS256":            f.withHeader(map[string]any{"alg": "RS256"}),
		"alg changed to HS256":            f.withHeader(map[string]any{"alg": "HS256"}),
		"unknown crit":                    f.withHeader(map[string]any{"crit": []string{"x"}, "x": 1}),
		"JSON serialization":              `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"four parts":                      good + ".x",
		"white space":                     " " + good + "\n",
		"not a token":                     "x",
		"binary":                          "\x00\xff",
		"dots":                            "..",
		"longer than any JWT-SVID can be": good + strings.Repeat("A", 64<<10),
	}
}

func TestS09_InvalidTokensAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.server.Put(w.server.Entry("e1", "/one", "a"))
	w.sync()
	f := forge{t, w.server}
	validate := func(token string) error {
		_, err := w.client.ValidateJWTSVID(w.ctx(), &workload.ValidateJWTSVIDRequest{Audience: "me", Svid: token})
		return err
	}
	if err := validate(f.good(nil)); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	for name, token := range f.forgeries() {
		err := validate(token)
		want := codes.InvalidArgument
		if name == "binary" {
			want = codes.Internal // gRPC's own: a string of the request is not UTF-8
		}
		if status.Code(err) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestS22_TokensAreNeverLogged: neither tokens, whether good or not, nor keys are
// in a log line or an error.
func TestS22_TokensAreNeverLogged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.server.Put(w.server.Entry("e1", "/one", "a"))
	w.sync()
	key := recv(t, w.x509()).GetSvids()[0].GetX509SvidKey()
	got, err := w.client.FetchJWTSVID(w.ctx(), &workload.JWTSVIDRequest{Audience: []string{"me"}})
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string]string{"a token that was issued": got.GetSvids()[0].GetSvid(), "a key": base64.StdEncoding.EncodeToString(key)}
	var said []string
	for name, token := range (forge{t, w.server}).forgeries() {
		_, err := w.client.ValidateJWTSVID(w.ctx(), &workload.ValidateJWTSVIDRequest{Audience: "me", Svid: token})
		said = append(said, err.Error())
		secrets[name] = token
	}
	if _, err := w.client.ValidateJWTSVID(w.ctx(), &workload.ValidateJWTSVIDRequest{Audience: "me", Svid: got.GetSvids()[0].GetSvid()}); err != nil {
		t.Error(err)
	}
	said = append(said, w.log.String())
	if !strings.Contains(w.log.String(), "refused a JWT-SVID") {
		t.Error("the log does not have the refusals, so that this test proves nothing")
	}
	for _, text := range said {
		for name, secret := range secrets {
			for _, part := range append(strings.Split(secret, "."), secret) {
				if len(part) >= 20 && strings.Contains(text, part[:20]) {
					t.Errorf("%s is said in %.200q", name, text)
				}
			}
		}
	}
}

// FuzzValidateJWTSVID: whatever comes, it is either refused without being
// repeated, or it is a token that the authority signed for the audience.
func FuzzValidateJWTSVID(f *testing.F) {
	server := cachetest.New(f, "example.org")
	made := forge{f, server}
	good := made.good(nil)
	f.Add(good, "me")
	for _, token := range made.forgeries() {
		f.Add(token, "me")
	}
	w := newWorld(f)
	d := w.server.Put()
	d.Bundles = append(d.Bundles, server.Bundle()) // in the place of its own
	if err := w.cache.Apply(d); err != nil {
		f.Fatal(err)
	}
	grant := w.cache.Subscribe(nil).Latest()
	api, err := workloadapi.New(workloadapi.Config{TrustDomain: server.TrustDomain, Cache: w.cache, Attestor: w.runner})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, token, audience string) {
		resp, err := api.Validate(time.Now(), &workload.ValidateJWTSVIDRequest{Audience: audience, Svid: token}, grant)
		if err != nil {
			if len(token) > 40 && strings.Contains(err.Error(), token) {
				t.Errorf("the error repeats the token: %v", err)
			}
			return
		}
		if !sameSigned(token, good) || audience != "me" || resp.GetSpiffeId() != "spiffe://example.org/x" {
			t.Errorf("accepted for %q: %q", audience, token)
		}
	})
}

// sameSigned says whether what is signed in both tokens is the same. A signature
// has more than one form.
func sameSigned(a, b string) bool {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	if len(x) != 3 || len(y) != 3 {
		return false
	}
	for i := range 2 {
		p, err := base64.RawURLEncoding.DecodeString(x[i])
		q, err2 := base64.RawURLEncoding.DecodeString(y[i])
		if err != nil || err2 != nil || string(p) != string(q) {
			return false
		}
	}
	return true
}
