package svid_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/credence-id/credence/pkg/svid"
)

func jwtAuthority(t testing.TB, key crypto.Signer, issuer string, now time.Time) (*svid.JWTIssuer, *jwtbundle.Bundle, string) {
	t.Helper()
	kid, err := svid.KeyID(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	i, err := svid.NewJWTIssuer(td, kid, key.Public(), issuer, now.Add(-svid.Backdate), now.Add(24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return i, jwtbundle.FromJWTAuthorities(td, map[string]crypto.PublicKey{kid: key.Public()}), kid
}

func jwtRequest() svid.JWTRequest {
	return svid.JWTRequest{ID: webID, Audience: []string{"billing"}, TTL: 5 * time.Minute}
}

func decodePart(t *testing.T, token string, n int) string {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("the token has %d parts", len(parts))
	}
	return string(must(base64.RawURLEncoding.DecodeString(parts[n])))
}

func TestJWTContent(t *testing.T) {
	t.Parallel()
	iat := noon.Unix()
	for name, c := range map[string]struct {
		issuer string
		change func(*svid.JWTRequest)
		want   string
	}{
		"plain":            {"", func(*svid.JWTRequest) {}, `{"aud":["billing"],"exp":%d,"iat":%d,"sub":"spiffe://example.org/web"}`},
		"issuer and jti":   {"https://oidc.example.org", func(r *svid.JWTRequest) { r.IncludeJTI = true }, `{"aud":["billing"],"exp":%d,"iat":%d,"iss":"https://oidc.example.org","jti":"the-jti","sub":"spiffe://example.org/web"}`},
		"two audiences":    {"", func(r *svid.JWTRequest) { r.Audience = []string{"a", "b"} }, `{"aud":["a","b"],"exp":%d,"iat":%d,"sub":"spiffe://example.org/web"}`},
		"empty audiences":  {"", func(r *svid.JWTRequest) { r.Audience = []string{"", "a", ""} }, `{"aud":["a"],"exp":%d,"iat":%d,"sub":"spiffe://example.org/web"}`},
		"quotes and lines": {"", func(r *svid.JWTRequest) { r.Audience = []string{"a\"b\\c\n\u2028é<"} }, `{"aud":["a\"b\\c\n\u2028é\u003c"],"exp":%d,"iat":%d,"sub":"spiffe://example.org/web"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := keyKinds()["P-256"]
			issuer, _, kid := jwtAuthority(t, key, c.issuer, noon)
			req := jwtRequest()
			c.change(&req)
			approved, err := issuer.Approve(noon, "the-jti", req)
			if err != nil {
				t.Fatal(err)
			}
			out := seal(t, key, approved)
			want := fmt.Sprintf(c.want, iat+300, iat)
			if diff := cmp.Diff(want, decodePart(t, out.Token, 1)); diff != "" {
				t.Errorf("claims (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(fmt.Sprintf(`{"alg":"ES256","kid":%q,"typ":"JWT"}`, kid), decodePart(t, out.Token, 0)); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
			if !out.IssuedAt.Equal(at("12:00:00")) || !out.ExpiresAt.Equal(at("12:05:00")) || out.Capped {
				t.Errorf("from %s until %s, capped %t", out.IssuedAt, out.ExpiresAt, out.Capped)
			}
		})
	}
}

// TestJWTVerifies: go-spiffe and our own validation accept what we issue, for
// every key, and only the key it was made with.
func TestJWTVerifies(t *testing.T) {
	t.Parallel()
	now := time.Now() // go-spiffe has a clock of its own
	for name, alg := range map[string]string{"P-256": "ES256", "P-384": "ES384", "RSA-2048": "RS256", "RSA-4096": "RS256"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := keyKinds()[name]
			issuer, bundle, _ := jwtAuthority(t, key, "", now)
			for range 20 { // r and s of every length
				approved, err := issuer.Approve(now, "", jwtRequest())
				if err != nil {
					t.Fatal(err)
				}
				token := seal(t, key, approved).Token
				if h := decodePart(t, token, 0); !strings.Contains(h, `"alg":"`+alg+`"`) {
					t.Fatalf("header %s, want %s", h, alg)
				}
				theirs, err := jwtsvid.ParseAndValidate(token, bundle, []string{"billing"})
				if err != nil || theirs.ID != webID {
					t.Fatalf("go-spiffe: %v", err)
				}
				ours, err := svid.ValidateJWT(now, token, bundle, "billing")
				if err != nil {
					t.Fatal(err)
				}
				if ours.ID != webID || !slices.Equal(ours.Audience, []string{"billing"}) || !ours.ExpiresAt.Equal(theirs.Expiry) {
					t.Fatalf("we read %+v", ours)
				}
				if diff := cmp.Diff(theirs.Claims, ours.All); diff != "" {
					t.Fatalf("claims (-go-spiffe +ours):\n%s", diff)
				}
			}
		})
	}
	if _, err := svid.NewJWTIssuer(td, "kid", keyKinds()["P-521"].Public(), "", now, now.Add(time.Hour)); !errors.Is(err, svid.ErrRefused) {
		t.Errorf("P-521: %v", err)
	}
	if _, err := svid.NewJWTIssuer(td, "", keyKinds()["P-256"].Public(), "", now, now.Add(time.Hour)); !errors.Is(err, svid.ErrRefused) {
		t.Errorf("no key ID: %v", err)
	}
}

// TestKeyIDIsThumbprint compares with go-jose's RFC 7638.
func TestKeyIDIsThumbprint(t *testing.T) {
	t.Parallel()
	for name, key := range keyKinds() {
		want := must((&jose.JSONWebKey{Key: key.Public()}).Thumbprint(crypto.SHA256))
		got, err := svid.KeyID(key.Public())
		if err != nil || got != base64.RawURLEncoding.EncodeToString(want) {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	if _, err := svid.KeyID("no key"); !errors.Is(err, svid.ErrRefused) {
		t.Errorf("of a string: %v", err)
	}
}

// TestS08_JWTLimits tries each limit of a request on both sides.
func TestS08_JWTLimits(t *testing.T) {
	t.Parallel()
	list := func(n int) []string { return slices.Repeat([]string{"a"}, n) }
	one := func(n int) []string { return []string{strings.Repeat("a", n)} }
	end := noon.Add(24 * time.Hour)
	for name, c := range map[string]struct {
		set  func(*svid.JWTRequest)
		now  time.Time
		want error
	}{
		"no audience":      {func(r *svid.JWTRequest) { r.Audience = nil }, noon, svid.ErrRefused},
		"empty audience":   {func(r *svid.JWTRequest) { r.Audience = []string{""} }, noon, svid.ErrRefused},
		"99 audiences":     {func(r *svid.JWTRequest) { r.Audience = list(99) }, noon, nil},
		"100 audiences":    {func(r *svid.JWTRequest) { r.Audience = list(100) }, noon, nil},
		"101 audiences":    {func(r *svid.JWTRequest) { r.Audience = list(101) }, noon, svid.ErrRefused},
		"2047 bytes":       {func(r *svid.JWTRequest) { r.Audience = one(2047) }, noon, nil},
		"2048 bytes":       {func(r *svid.JWTRequest) { r.Audience = one(2048) }, noon, nil},
		"2049 bytes":       {func(r *svid.JWTRequest) { r.Audience = one(2049) }, noon, svid.ErrRefused},
		"not UTF-8":        {func(r *svid.JWTRequest) { r.Audience = []string{"a\xff"} }, noon, svid.ErrRefused},
		"no TTL":           {func(r *svid.JWTRequest) { r.TTL = 0 }, noon, svid.ErrRefused},
		"negative TTL":     {func(r *svid.JWTRequest) { r.TTL = -1 }, noon, svid.ErrRefused},
		"no ID":            {func(r *svid.JWTRequest) { r.ID = spiffeid.ID{} }, noon, svid.ErrRefused},
		"the trust domain": {func(r *svid.JWTRequest) { r.ID = td.ID() }, noon, svid.ErrRefused},
		"foreign":          {func(r *svid.JWTRequest) { r.ID = spiffeid.RequireFromString("spiffe://other.org/web") }, noon, svid.ErrRefused},
		"the last second":  {func(*svid.JWTRequest) {}, end.Add(-time.Second), nil},
		"at its end":       {func(*svid.JWTRequest) {}, end, svid.ErrExpired},
		"before it":        {func(*svid.JWTRequest) {}, noon.Add(-svid.Backdate - 1), svid.ErrExpired},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			issuer, _, _ := jwtAuthority(t, keyKinds()["P-256"], "", noon)
			req := jwtRequest()
			c.set(&req)
			approved, err := issuer.Approve(c.now, "", req)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("Approve returns %v, want %v", err, c.want)
			}
			if err == nil && approved.ExpiresAt().After(issuer.NotAfter()) {
				t.Errorf("the token outlives its authority: %s", approved.ExpiresAt())
			}
		})
	}
}

// TestS19_JWTApprovalIsUsedOnce, and a signer's nonsense is not passed on.
func TestS19_JWTApprovalIsUsedOnce(t *testing.T) {
	t.Parallel()
	key := keyKinds()["P-256"]
	issuer, _, _ := jwtAuthority(t, key, "", noon)
	approved := must(issuer.Approve(noon, "", jwtRequest()))
	seal(t, key, approved)
	if _, _, err := approved.Take(); !errors.Is(err, svid.ErrUsed) {
		t.Errorf("the second Take returns %v", err)
	}
	if _, err := approved.Seal(nil); !errors.Is(err, svid.ErrUsed) {
		t.Errorf("the second Seal returns %v", err)
	}
	wide := must(ecdsa.SignASN1(rand.Reader, keyKinds()["P-521"].(*ecdsa.PrivateKey), make([]byte, 32)))
	for name, sig := range map[string][]byte{
		"empty":        nil,
		"of zero":      {0x30, 0x06, 0x02, 0x01, 0x00, 0x02, 0x01, 0x00},
		"negative":     {0x30, 0x06, 0x02, 0x01, 0x81, 0x02, 0x01, 0x01},
		"raw":          make([]byte, 64),
		"trailing":     {0x30, 0x06, 0x02, 0x01, 0x01, 0x02, 0x01, 0x01, 0x00},
		"of too large": wide,
	} {
		approved := must(issuer.Approve(noon, "", jwtRequest()))
		if _, _, err := approved.Take(); err != nil {
			t.Fatal(err)
		}
		if _, err := approved.Seal(sig); !errors.Is(err, svid.ErrInvalid) {
			t.Errorf("a signature that is %s: %v", name, err)
		}
	}
}

// FuzzJWTRequest wants the hand-written JSON to be what encoding/json reads
// back as the request.
func FuzzJWTRequest(f *testing.F) {
	f.Add("billing", "/web", "jti", "https://issuer", int64(300))
	f.Add("a\"\\\x00\u2028<>&\x7f", "/a/b", "\"", "\n", int64(1))
	f.Fuzz(func(t *testing.T, audience, path, jti, issuer string, ttl int64) {
		id, err := spiffeid.FromPath(td, path)
		if err != nil || !utf8.ValidString(jti) || !utf8.ValidString(issuer) {
			return
		}
		key := keyKinds()["P-256"]
		authority, bundle, _ := jwtAuthority(t, key, issuer, noon)
		approved, err := authority.Approve(noon, jti, svid.JWTRequest{
			ID: id, Audience: []string{audience}, TTL: time.Duration(ttl) * time.Second, IncludeJTI: true,
		})
		if err != nil {
			return
		}
		out := seal(t, key, approved)
		var got struct {
			Aud      []string
			Exp, Iat int64
			Iss      string
			Jti      string
			Sub      string
		}
		if err := json.Unmarshal([]byte(decodePart(t, out.Token, 1)), &got); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got.Aud, []string{audience}) || got.Sub != id.String() || got.Iss != issuer || got.Jti != jti ||
			got.Iat != noon.Unix() || got.Exp != out.ExpiresAt.Unix() {
			t.Fatalf("claims are %+v", got)
		}
		if _, err := svid.ValidateJWT(noon, out.Token, bundle, audience); err != nil {
			t.Fatal(err)
		}
	})
}
