package svid_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/svid"
)

// forge makes a token of any header and claims; key is a crypto.Signer, the
// []byte of an HMAC, or nil for an empty signature.
func forge(t testing.TB, header, claims any, key any) string {
	t.Helper()
	part := func(v any) string {
		if s, ok := v.(string); ok {
			return base64.RawURLEncoding.EncodeToString([]byte(s))
		}
		return base64.RawURLEncoding.EncodeToString(must(json.Marshal(v)))
	}
	signed := part(header) + "." + part(claims)
	var sig []byte
	switch k := key.(type) {
	case []byte:
		mac := hmac.New(sha256.New, k)
		mac.Write([]byte(signed))
		sig = mac.Sum(nil)
	case *ecdsa.PrivateKey:
		size := (k.Curve.Params().BitSize + 7) / 8
		digest := sha256.Sum256([]byte(signed))
		var r, s *big.Int
		if size == 48 {
			d := sha512.Sum384([]byte(signed))
			r, s, _ = ecdsa.Sign(rand.Reader, k, d[:])
		} else {
			r, s, _ = ecdsa.Sign(rand.Reader, k, digest[:])
		}
		sig = append(r.FillBytes(make([]byte, size)), s.FillBytes(make([]byte, size))...)
	case *rsa.PrivateKey:
		digest := sha256.Sum256([]byte(signed))
		sig = must(rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, digest[:]))
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// world is two trust domains that federate: ours and other.org, which uses a
// kid of ours for a key of its own.
type world struct {
	ours, theirs, rsa, second crypto.Signer
	bundles                   *spiffebundle.Set
}

func newWorld() world {
	w := world{
		ours: keyKinds()["P-256"], rsa: keyKinds()["RSA-2048"], second: keyKinds()["P-384"],
		theirs: must(ecdsa.GenerateKey(keyKinds()["P-256"].(*ecdsa.PrivateKey).Curve, rand.Reader)),
	}
	own := spiffebundle.New(td)
	other := spiffebundle.New(spiffeid.RequireTrustDomainFromString("other.org"))
	for kid, key := range map[string]crypto.Signer{"ours": w.ours, "rsa": w.rsa, "p384": w.second} {
		if err := own.AddJWTAuthority(kid, key.Public()); err != nil {
			panic(err)
		}
	}
	if err := other.AddJWTAuthority("ours", w.theirs.Public()); err != nil {
		panic(err)
	}
	w.bundles = spiffebundle.NewSet(own, other)
	return w
}

type fields = map[string]any

// TestS09_JWTVectors: everything that is wrong with a token gets it refused,
// starting from one that is right.
func TestS09_JWTVectors(t *testing.T) {
	t.Parallel()
	w := newWorld()
	now := noon
	header := func(more fields) fields {
		h := fields{"alg": "ES256", "kid": "ours", "typ": "JWT"}
		maps.Copy(h, more)
		return h
	}
	claims := func(more fields) fields {
		c := fields{"sub": "spiffe://example.org/web", "aud": []string{"billing"}, "exp": now.Add(time.Minute).Unix(), "iat": now.Unix()}
		maps.Copy(c, more)
		for k, v := range c {
			if v == nil {
				delete(c, k)
			}
		}
		return c
	}
	pkix := must(x509.MarshalPKIXPublicKey(w.rsa.Public()))
	ecPKIX := must(x509.MarshalPKIXPublicKey(w.ours.Public()))
	good := forge(t, header(nil), claims(nil), w.ours)
	parts := strings.Split(good, ".")

	accepted := map[string]string{
		"the usual":            good,
		"no typ":               forge(t, fields{"alg": "ES256", "kid": "ours"}, claims(nil), w.ours),
		"typ JOSE":             forge(t, header(fields{"typ": "JOSE"}), claims(nil), w.ours),
		"aud as a string":      forge(t, header(nil), claims(fields{"aud": "billing"}), w.ours),
		"no iat":               forge(t, header(nil), claims(fields{"iat": nil}), w.ours),
		"RSA":                  forge(t, header(fields{"alg": "RS256", "kid": "rsa"}), claims(nil), w.rsa),
		"P-384":                forge(t, header(fields{"alg": "ES384", "kid": "p384"}), claims(nil), w.second),
		"expired within skew":  forge(t, header(nil), claims(fields{"exp": now.Add(-svid.Skew).Unix() + 1}), w.ours),
		"not yet within skew":  forge(t, header(nil), claims(fields{"nbf": now.Add(svid.Skew).Unix()}), w.ours),
		"federated":            forge(t, header(nil), claims(fields{"sub": "spiffe://other.org/web"}), w.theirs),
		"one of its audiences": forge(t, header(nil), claims(fields{"aud": []string{"x", "billing"}}), w.ours),
	}
	for name, token := range accepted {
		if _, err := svid.ValidateJWT(now, token, w.bundles, "billing"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	refused := map[string]string{
		"no exp":                 forge(t, header(nil), claims(fields{"exp": nil}), w.ours),
		"exp null":               forge(t, header(nil), `{"sub":"spiffe://example.org/web","aud":["billing"],"exp":null}`, w.ours),
		"exp a string":           forge(t, header(nil), claims(fields{"exp": "9999999999"}), w.ours),
		"exp beyond integers":    forge(t, header(nil), `{"sub":"spiffe://example.org/web","aud":["billing"],"exp":1e300}`, w.ours),
		"exp negative":           forge(t, header(nil), claims(fields{"exp": -1}), w.ours),
		"exp zero":               forge(t, header(nil), claims(fields{"exp": 0}), w.ours),
		"expired":                forge(t, header(nil), claims(fields{"exp": now.Add(-svid.Skew).Unix() - 1}), w.ours),
		"no aud":                 forge(t, header(nil), claims(fields{"aud": nil}), w.ours),
		"aud empty":              forge(t, header(nil), claims(fields{"aud": []string{}}), w.ours),
		"aud of nothing":         forge(t, header(nil), claims(fields{"aud": []string{""}}), w.ours),
		"aud another":            forge(t, header(nil), claims(fields{"aud": []string{"billing2"}}), w.ours),
		"aud in other case":      forge(t, header(nil), claims(fields{"aud": []string{"Billing"}}), w.ours),
		"aud a number":           forge(t, header(nil), claims(fields{"aud": 1}), w.ours),
		"no sub":                 forge(t, header(nil), claims(fields{"sub": nil}), w.ours),
		"sub empty":              forge(t, header(nil), claims(fields{"sub": ""}), w.ours),
		"sub no SPIFFE ID":       forge(t, header(nil), claims(fields{"sub": "web"}), w.ours),
		"sub an https URL":       forge(t, header(nil), claims(fields{"sub": "https://example.org/web"}), w.ours),
		"sub with dots":          forge(t, header(nil), claims(fields{"sub": "spiffe://example.org/a/../web"}), w.ours),
		"not yet valid":          forge(t, header(nil), claims(fields{"nbf": now.Add(svid.Skew).Unix() + 2}), w.ours),
		"issued in the future":   forge(t, header(nil), claims(fields{"iat": now.Add(svid.Skew).Unix() + 2}), w.ours),
		"alg none":               forge(t, header(fields{"alg": "none"}), claims(nil), nil),
		"alg None":               forge(t, header(fields{"alg": "None"}), claims(nil), nil),
		"alg empty":              forge(t, header(fields{"alg": ""}), claims(nil), w.ours),
		"alg missing":            forge(t, fields{"kid": "ours"}, claims(nil), w.ours),
		"HS256 with RSA public":  forge(t, header(fields{"alg": "HS256", "kid": "rsa"}), claims(nil), pkix),
		"HS256 with EC public":   forge(t, header(fields{"alg": "HS256"}), claims(nil), ecPKIX),
		"HS512":                  forge(t, header(fields{"alg": "HS512"}), claims(nil), ecPKIX),
		"EdDSA":                  forge(t, header(fields{"alg": "EdDSA"}), claims(nil), w.ours),
		"ES256K":                 forge(t, header(fields{"alg": "ES256K"}), claims(nil), w.ours),
		"alg of a larger curve":  forge(t, header(fields{"alg": "ES384"}), claims(nil), w.ours),
		"alg of a smaller curve": forge(t, header(fields{"kid": "p384"}), claims(nil), w.second),
		"ES256 with an RSA kid":  forge(t, header(fields{"kid": "rsa"}), claims(nil), w.ours),
		"RS256 with an EC kid":   forge(t, header(fields{"alg": "RS256"}), claims(nil), w.rsa),
		"no kid":                 forge(t, fields{"alg": "ES256", "typ": "JWT"}, claims(nil), w.ours),
		"kid unknown":            forge(t, header(fields{"kid": "other"}), claims(nil), w.ours),
		"kid of a foreign key":   forge(t, header(nil), claims(nil), w.theirs),
		"foreign sub, our key":   forge(t, header(nil), claims(fields{"sub": "spiffe://other.org/web"}), w.ours),
		"unknown trust domain":   forge(t, header(nil), claims(fields{"sub": "spiffe://third.org/web"}), w.ours),
		"typ wit+jwt":            forge(t, header(fields{"typ": "wit+jwt"}), claims(nil), w.ours),
		"typ at+jwt":             forge(t, header(fields{"typ": "at+jwt"}), claims(nil), w.ours),
		"typ jwt in lower case":  forge(t, header(fields{"typ": "jwt"}), claims(nil), w.ours),
		"typ a number":           forge(t, header(fields{"typ": 1}), claims(nil), w.ours),
		"key in the header":      forge(t, fields{"alg": "ES256", "jwk": fields{"kty": "EC"}}, claims(nil), w.theirs),
		"critical extension":     forge(t, header(fields{"crit": []string{"x"}, "x": 1}), claims(nil), w.ours),
		"detached payload":       forge(t, header(fields{"b64": false, "crit": []string{"b64"}}), claims(nil), w.ours),
		"key another":            forge(t, header(nil), claims(nil), w.theirs),
		"claims changed":         parts[0] + "." + base64.RawURLEncoding.EncodeToString(must(json.Marshal(claims(fields{"sub": "spiffe://example.org/db"})))) + "." + parts[2],
		"signature cut":          good[:len(good)-2],
		"signature missing":      parts[0] + "." + parts[1] + ".",
		"two parts":              parts[0] + "." + parts[1],
		"four parts":             good + ".x",
		"padding":                good + "==",
		"leading space":          " " + good,
		"empty":                  "",
		"claims not an object":   forge(t, header(nil), `["sub"]`, w.ours),
		"claims not JSON":        forge(t, header(nil), `{`, w.ours),
		"header not JSON":        forge(t, `{`, claims(nil), w.ours),
		"sub twice":              forge(t, header(nil), fmt.Sprintf(`{"sub":"spiffe://example.org/web","sub":"spiffe://example.org/db","aud":["billing"],"exp":%d}`, now.Unix()+60), w.ours),
		"JSON serialization":     fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, parts[0], parts[1], parts[2]),
		"too long":               good + strings.Repeat("A", svid.MaxToken),
	}
	for name, token := range refused {
		got, err := svid.ValidateJWT(now, token, w.bundles, "billing")
		if err == nil {
			t.Errorf("%s: accepted as %s", name, got.ID)
			continue
		}
		if !errors.Is(err, svid.ErrInvalid) {
			t.Errorf("%s: %v is not ErrInvalid", name, err)
		}
		// S22: the token is in no error.
		for part := range strings.SplitSeq(token, ".") {
			if len(part) > 8 && strings.Contains(err.Error(), part) {
				t.Errorf("%s: the error quotes the token: %v", name, err)
			}
		}
	}
	if _, err := svid.ValidateJWT(now, forge(t, header(nil), claims(fields{"aud": []string{""}}), w.ours), w.bundles, ""); err == nil {
		t.Error("an empty audience was looked for and found")
	}
}

// TestS09_WrongUse: a key that the bundle has for X.509 or for WIT-SVIDs does
// not verify a JWT-SVID, nor does one without use, whatever its kid is.
func TestS09_WrongUse(t *testing.T) {
	t.Parallel()
	key := keyKinds()["P-256"].(*ecdsa.PrivateKey)
	point := must(key.PublicKey.Bytes())
	coordinate := func(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	token := forge(t, fields{"alg": "ES256", "kid": "k"},
		fields{"sub": webID.String(), "aud": "billing", "exp": noon.Add(time.Minute).Unix()}, key)
	for use, ok := range map[string]bool{"jwt-svid": true, "wit-svid": false, "sig": false, "": false} {
		document := must(json.Marshal(fields{"keys": []fields{{
			"kty": "EC", "crv": "P-256", "kid": "k", "use": use, "x": coordinate(point[1:33]), "y": coordinate(point[33:]),
		}}}))
		bundle, err := spiffebundle.Parse(td, document)
		if err != nil {
			if ok {
				t.Errorf("use %q: %v", use, err)
			}
			continue
		}
		if _, err := svid.ValidateJWT(noon, token, bundle, "billing"); (err == nil) != ok {
			t.Errorf("use %q: %v", use, err)
		}
	}
}

// TestS08_TokenLimit tries the limit of size on both sides.
func TestS08_TokenLimit(t *testing.T) {
	t.Parallel()
	w := newWorld()
	sized := func(n int) string {
		return forge(t, fields{"alg": "ES256", "kid": "ours"},
			fields{"sub": webID.String(), "aud": "billing", "exp": noon.Unix() + 60, "x": strings.Repeat("a", n)}, w.ours)
	}
	n := svid.MaxToken*3/4 - 400
	for len(sized(n)) < svid.MaxToken {
		n++
	}
	for _, c := range []struct {
		n  int
		ok bool
	}{{n - 1, true}, {n, len(sized(n)) == svid.MaxToken}, {n + 2, false}} {
		if _, err := svid.ValidateJWT(noon, sized(c.n), w.bundles, "billing"); (err == nil) != c.ok {
			t.Errorf("%d bytes: %v", len(sized(c.n)), err)
		}
	}
}

// FuzzValidateJWT feeds foreign tokens. Whatever is accepted has a good
// signature, which the fuzzer cannot make: so it must be one of the seeds'
// signed parts.
func FuzzValidateJWT(f *testing.F) {
	w := newWorld()
	seeds := map[string]bool{}
	for _, sub := range []string{"spiffe://example.org/web", "spiffe://other.org/web", "web"} {
		for _, h := range []fields{
			{"alg": "ES256", "kid": "ours", "typ": "JWT"}, {"alg": "RS256", "kid": "rsa"}, {"alg": "none"}, {"alg": "HS256", "kid": "ours"},
		} {
			token := forge(f, h, fields{"sub": sub, "aud": []string{"billing"}, "exp": noon.Unix() + 60}, w.ours)
			seeds[token[:strings.LastIndexByte(token, '.')]] = true
			f.Add(token)
		}
	}
	f.Fuzz(func(t *testing.T, token string) {
		got, err := svid.ValidateJWT(noon, token, w.bundles, "billing")
		if err != nil {
			if !errors.Is(err, svid.ErrInvalid) {
				t.Fatalf("error is not the sentinel: %v", err)
			}
			return
		}
		if !seeds[token[:strings.LastIndexByte(token, '.')]] {
			t.Fatalf("a forged token is accepted as %s", got.ID)
		}
	})
}

func BenchmarkValidateJWT(b *testing.B) {
	key := keyKinds()["P-256"]
	issuer, bundle, _ := jwtAuthority(b, key, "", noon)
	token := seal(b, key, must(issuer.Approve(noon, "", jwtRequest()))).Token
	var source jwtbundle.Source = bundle
	for b.Loop() {
		if _, err := svid.ValidateJWT(noon, token, source, "billing"); err != nil {
			b.Fatal(err)
		}
	}
}
