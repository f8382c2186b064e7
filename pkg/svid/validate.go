package svid

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MaxToken bounds a JWT-SVID that is validated, in bytes.
const MaxToken = 32 << 10

// JWTClaims is what a JWT-SVID said that passed [ValidateJWT].
type JWTClaims struct {
	ID spiffeid.ID
	// Audience is the token's, which includes the one asked for.
	Audience  []string
	ExpiresAt time.Time
	// All is every claim, the registered ones included. Numbers are float64.
	All map[string]any
}

// algorithms of JWT-SVID, 2.1, by the family of key that may use them. A key on
// one curve has one algorithm.
var (
	rsaAlgorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}
	ecAlgorithms  = map[string]jose.SignatureAlgorithm{"P-256": jose.ES256, "P-384": jose.ES384, "P-521": jose.ES512}
	algorithms    = append(slices.Clone(rsaAlgorithms), jose.ES256, jose.ES384, jose.ES512)
)

// ValidateJWT accepts a JWT-SVID that names the audience (JWT-SVID, 2 to 5), and
// returns what it says. The key comes only from the bundle of the trust domain
// that the token's sub names, and the bundle must be one of SPIFFE's, in which
// keys of another use are left out. Times may be off by [Skew]. It returns
// ErrInvalid; neither the error nor anything else holds the token.
func ValidateJWT(now time.Time, token string, bundles jwtbundle.Source, audience string) (*JWTClaims, error) {
	v, err := VerifyJWT(token, bundles)
	if err != nil {
		return nil, err
	}
	return v.Validate(now, audience)
}

// VerifiedJWT is what a JWT-SVID says that an authority has signed. It is not
// yet valid for anybody: that is [VerifiedJWT.Validate]. It does not change, and
// may be used by many goroutines.
type VerifiedJWT struct {
	id     spiffeid.ID
	keyID  string
	key    crypto.PublicKey
	claims jwt.Claims
	all    map[string]any
}

// VerifyJWT is the part of [ValidateJWT] that neither time nor audience change:
// the token's form and its signature. It returns ErrInvalid.
func VerifyJWT(token string, bundles jwtbundle.Source) (*VerifiedJWT, error) {
	if len(token) > MaxToken {
		return nil, invalidToken("%d bytes are more than %d", len(token), MaxToken)
	}
	parsed, err := jwt.ParseSigned(token, algorithms)
	if err != nil {
		// The library's text may quote the token's header.
		return nil, invalidToken("it is not a JWS in compact form with an allowed algorithm")
	}
	header, err := checkHeader(parsed)
	if err != nil {
		return nil, err
	}
	v := &VerifiedJWT{keyID: header.KeyID}
	if err := parsed.UnsafeClaimsWithoutVerification(&v.claims); err != nil {
		return nil, invalidToken("its claims are malformed")
	}
	if v.id, err = spiffeid.FromString(v.claims.Subject); err != nil {
		return nil, invalidToken("sub is not a SPIFFE ID")
	}
	if v.key, err = findKey(bundles, v.id.TrustDomain(), header); err != nil {
		return nil, err
	}
	if err := parsed.Claims(v.key, &v.all); err != nil {
		return nil, invalidToken("the signature does not verify")
	}
	return v, nil
}

// Trusted says whether the bundles have the key that verified the token, under
// the name that the token has for it. If so, [VerifyJWT] would find what it found.
func (v *VerifiedJWT) Trusted(bundles jwtbundle.Source) bool {
	bundle, err := bundles.GetJWTBundleForTrustDomain(v.id.TrustDomain())
	if err != nil {
		return false
	}
	key, ok := bundle.FindJWTAuthority(v.keyID)
	if !ok {
		return false
	}
	same, ok := v.key.(interface{ Equal(crypto.PublicKey) bool })
	return ok && same.Equal(key)
}

// Validate returns what the token says if it is valid now and names the audience.
// Times may be off by [Skew]. It returns ErrInvalid. The claims are shared: they
// must not be changed.
func (v *VerifiedJWT) Validate(now time.Time, audience string) (*JWTClaims, error) {
	if audience == "" {
		return nil, invalidToken("the audience to check for is empty")
	}
	if err := checkClaims(now, &v.claims, audience); err != nil {
		return nil, err
	}
	return &JWTClaims{ID: v.id, Audience: v.claims.Audience, ExpiresAt: v.claims.Expiry.Time().UTC(), All: v.all}, nil
}

func invalidToken(format string, args ...any) error {
	return fmt.Errorf("%w JWT-SVID: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

func checkHeader(t *jwt.JSONWebToken) (jose.Header, error) {
	if len(t.Headers) != 1 {
		return jose.Header{}, invalidToken("it has %d signatures and must have one", len(t.Headers))
	}
	h := t.Headers[0]
	if h.KeyID == "" {
		return h, invalidToken("header kid is missing")
	}
	// JWT-SVID, 2.3: typ is JWT or JOSE when it is there. So a WIT-SVID
	// (wit+jwt) is never taken for a bearer token.
	if typ, ok := h.ExtraHeaders[jose.HeaderType]; ok && typ != "JWT" && typ != "JOSE" {
		return h, invalidToken("header typ is neither JWT nor JOSE")
	}
	return h, nil
}

// findKey wants the key to be of the one family its algorithm is for.
func findKey(bundles jwtbundle.Source, td spiffeid.TrustDomain, h jose.Header) (crypto.PublicKey, error) {
	bundle, err := bundles.GetJWTBundleForTrustDomain(td)
	if err != nil {
		return nil, invalidToken("no bundle is known for trust domain %q", td.Name())
	}
	key, ok := bundle.FindJWTAuthority(h.KeyID)
	if !ok {
		return nil, invalidToken("its kid is not one of the JWT authorities of trust domain %q", td.Name())
	}
	if err := checkKey(key); err != nil {
		return nil, invalidToken("its authority has an unacceptable key: %v", err)
	}
	alg := jose.SignatureAlgorithm(h.Algorithm)
	switch k := key.(type) {
	case *rsa.PublicKey:
		if slices.Contains(rsaAlgorithms, alg) {
			return key, nil
		}
	case *ecdsa.PublicKey:
		if ecAlgorithms[k.Curve.Params().Name] == alg {
			return key, nil
		}
	}
	return nil, invalidToken("header alg %s is not for the key that kid names", alg)
}

func checkClaims(now time.Time, c *jwt.Claims, audience string) error {
	switch {
	case c.Expiry == nil:
		return invalidToken("exp is missing")
	case len(c.Audience) == 0:
		return invalidToken("aud is missing")
	}
	err := c.ValidateWithLeeway(jwt.Expected{AnyAudience: jwt.Audience{audience}, Time: now}, Skew)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jwt.ErrExpired):
		return invalidToken("it has expired")
	case errors.Is(err, jwt.ErrInvalidAudience):
		return invalidToken("aud does not have the expected audience")
	case errors.Is(err, jwt.ErrNotValidYet), errors.Is(err, jwt.ErrIssuedInTheFuture):
		return invalidToken("it is not valid yet")
	default:
		return invalidToken("its claims do not hold")
	}
}
