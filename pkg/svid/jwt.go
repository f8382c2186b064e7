package svid

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Limits of a JWT-SVID's audience.
const (
	// MaxAudiences is how many audiences one token may have.
	MaxAudiences = 100
	// MaxAudience bounds one audience in bytes.
	MaxAudience = 2048
)

// JWTRequest is what a JWT-SVID shall say.
type JWTRequest struct {
	// ID becomes the claim sub.
	ID spiffeid.ID
	// Audience has at least one value that is not empty; empty ones are
	// dropped.
	Audience []string
	// TTL counts from now; the token never outlives its authority. Package ca
	// puts the default in the place of zero.
	TTL time.Duration
	// IncludeJTI adds a random claim jti.
	IncludeJTI bool

	// EntryID and AgentID say why and for whom it is issued; see
	// [X509Request].
	EntryID string
	AgentID spiffeid.ID
}

// JWTSVID is an issued JWT-SVID.
type JWTSVID struct {
	// Token is a JWS in compact form. It is a secret.
	Token string
	// IssuedAt and ExpiresAt are UTC, whole seconds.
	IssuedAt, ExpiresAt time.Time
	// Capped says that the TTL asked for reached beyond the authority's end.
	Capped bool
}

// JWTIssuer is the authority's part of every JWT-SVID, encoded beforehand. It
// holds no private key. It may be used concurrently.
type JWTIssuer struct {
	trustDomain         spiffeid.TrustDomain
	notBefore, notAfter time.Time
	hash                crypto.Hash
	size                int    // bytes of r and of s; zero with RSA
	header              []byte // base64url of the JOSE header, and a dot
	issuer              []byte // JSON of the claim iss; nil for none
}

// NewJWTIssuer prepares an authority, whose key's ID is keyID and which signs
// from notBefore until notAfter. issuer becomes the claim iss; empty for none.
// The algorithm is fixed by the key: ES256, ES384 or RS256.
func NewJWTIssuer(td spiffeid.TrustDomain, keyID string, pub crypto.PublicKey, issuer string, notBefore, notAfter time.Time) (*JWTIssuer, error) {
	if keyID == "" {
		return nil, fmt.Errorf("%w: authority: its key ID is empty", ErrRefused)
	}
	if err := checkKey(pub); err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	i := &JWTIssuer{trustDomain: td, notBefore: notBefore, notAfter: notAfter}
	var alg string
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			alg, i.hash, i.size = "ES256", crypto.SHA256, 32
		case elliptic.P384():
			alg, i.hash, i.size = "ES384", crypto.SHA384, 48
		default:
			return nil, fmt.Errorf("%w: authority: the curve is not P-256 or P-384", ErrRefused)
		}
	case *rsa.PublicKey:
		alg, i.hash = "RS256", crypto.SHA256
	}
	header, err := json.Marshal(struct {
		Alg string `json:"alg"`
		Kid string `json:"kid"`
		Typ string `json:"typ"`
	}{alg, keyID, "JWT"})
	if err != nil {
		return nil, fmt.Errorf("encoding the JOSE header: %w", err)
	}
	i.header = append(base64.RawURLEncoding.AppendEncode(nil, header), '.')
	if issuer != "" {
		if i.issuer, err = json.Marshal(issuer); err != nil {
			return nil, fmt.Errorf("encoding the claim iss: %w", err)
		}
	}
	return i, nil
}

// NotAfter is the end of the authority's validity, and so of everything it
// signs.
func (i *JWTIssuer) NotAfter() time.Time { return i.notAfter }

// JWTApproval is a JWT-SVID that passed its profile and is not signed yet.
type JWTApproval struct {
	approval
	size int
	svid JWTSVID
}

// ExpiresAt is the token's exp.
func (a *JWTApproval) ExpiresAt() time.Time { return a.svid.ExpiresAt }

// Seal attaches the signature of what Take gave out, as a crypto.Signer makes
// it, and returns the JWT-SVID. It works once.
func (a *JWTApproval) Seal(signature []byte) (*JWTSVID, error) {
	if err := a.seal(); err != nil {
		return nil, err
	}
	if a.size > 0 {
		var err error
		if signature, err = joseSignature(signature, a.size); err != nil {
			return nil, err
		}
	}
	s := a.svid
	s.Token = string(base64.RawURLEncoding.AppendEncode(append(a.tbs, '.'), signature))
	return &s, nil
}

// joseSignature turns the DER of an ECDSA signature into r and s, each of size
// bytes (RFC 7518, 3.4).
func joseSignature(der []byte, size int) ([]byte, error) {
	var r, s big.Int
	input, inner := cryptobyte.String(der), cryptobyte.String(nil)
	if !input.ReadASN1(&inner, cbasn1.SEQUENCE) || !input.Empty() ||
		!inner.ReadASN1Integer(&r) || !inner.ReadASN1Integer(&s) || !inner.Empty() ||
		r.Sign() <= 0 || s.Sign() <= 0 || r.BitLen() > size*8 || s.BitLen() > size*8 {
		return nil, fmt.Errorf("%w: the signer's ECDSA signature is malformed", ErrInvalid)
	}
	out := make([]byte, 2*size)
	r.FillBytes(out[:size])
	s.FillBytes(out[size:])
	return out, nil
}

// Approve holds the request against the profile (JWT-SVID, 2 and 3) and decides
// every byte that will be signed. jti is used if the request asks for it. It
// returns ErrRefused, or ErrExpired when the authority's own validity does not
// include now.
func (i *JWTIssuer) Approve(now time.Time, jti string, req JWTRequest) (*JWTApproval, error) {
	if err := checkID(i.trustDomain, req.ID); err != nil {
		return nil, err
	}
	if err := checkTTL(req.TTL); err != nil {
		return nil, err
	}
	audience, err := encodeAudience(req.Audience)
	if err != nil {
		return nil, err
	}
	if now.Before(i.notBefore) || !now.Before(i.notAfter) {
		return nil, fmt.Errorf("JWT %w: now %s, valid from %s to %s", ErrExpired,
			now.UTC().Format(time.RFC3339), i.notBefore.UTC().Format(time.RFC3339), i.notAfter.UTC().Format(time.RFC3339))
	}
	a := &JWTApproval{size: i.size}
	a.hash = i.hash
	a.svid.IssuedAt = now.UTC().Truncate(time.Second)
	a.svid.ExpiresAt = now.Add(req.TTL).UTC().Truncate(time.Second)
	if last := i.notAfter.UTC().Truncate(time.Second); a.svid.ExpiresAt.After(last) {
		a.svid.ExpiresAt, a.svid.Capped = last, true
	}

	p := make([]byte, 0, 256+len(audience))
	p = append(append(p, `{"aud":`...), audience...)
	p = strconv.AppendInt(append(p, `,"exp":`...), a.svid.ExpiresAt.Unix(), 10)
	p = strconv.AppendInt(append(p, `,"iat":`...), a.svid.IssuedAt.Unix(), 10)
	if i.issuer != nil {
		p = append(append(p, `,"iss":`...), i.issuer...)
	}
	if req.IncludeJTI {
		p = appendJSON(append(p, `,"jti":`...), jti)
	}
	p = append(appendJSON(append(p, `,"sub":`...), req.ID.String()), '}')

	size := base64.RawURLEncoding.EncodedLen(len(p))
	a.tbs = make([]byte, 0, len(i.header)+size+128)
	a.tbs = base64.RawURLEncoding.AppendEncode(append(a.tbs, i.header...), p)
	return a, nil
}

// encodeAudience is a JSON array always, as SPIRE's is.
func encodeAudience(audience []string) ([]byte, error) {
	if len(audience) > MaxAudiences {
		return nil, fmt.Errorf("%w: audience: %d values are more than %d", ErrRefused, len(audience), MaxAudiences)
	}
	out := []byte{'['}
	for _, a := range audience {
		switch {
		case a == "":
			continue
		case len(a) > MaxAudience:
			return nil, fmt.Errorf("%w: audience: a value of %d bytes is longer than %d", ErrRefused, len(a), MaxAudience)
		case !utf8.ValidString(a):
			return nil, fmt.Errorf("%w: audience: a value is not UTF-8", ErrRefused)
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = appendJSON(out, a)
	}
	if len(out) == 1 {
		return nil, fmt.Errorf("%w: audience: at least one value is required", ErrRefused)
	}
	return append(out, ']'), nil
}

// appendJSON writes a JSON string. Plain ASCII, the usual case, is copied.
func appendJSON(to []byte, s string) []byte {
	plain := !slices.ContainsFunc([]byte(s), func(c byte) bool {
		return c < ' ' || c > '~' || c == '"' || c == '\\'
	})
	if plain {
		return append(append(append(to, '"'), s...), '"')
	}
	quoted, err := json.Marshal(s)
	if err != nil {
		return append(to, `""`...) // a string always marshals
	}
	return append(to, quoted...)
}

// KeyID is the RFC 7638 thumbprint of a public key, base64url: the key's ID in
// a bundle, the same wherever it is computed and different for every key.
func KeyID(pub crypto.PublicKey) (string, error) {
	var members string
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil {
			return "", fmt.Errorf("%w: public key: the point is not on its curve", ErrRefused)
		}
		half := len(point) / 2
		members = fmt.Sprintf(`{"crv":%q,"kty":"EC","x":%q,"y":%q}`, k.Curve.Params().Name,
			base64.RawURLEncoding.EncodeToString(point[1:half+1]), base64.RawURLEncoding.EncodeToString(point[half+1:]))
	case *rsa.PublicKey:
		members = fmt.Sprintf(`{"e":%q,"kty":"RSA","n":%q}`,
			base64.RawURLEncoding.EncodeToString(big.NewInt(int64(k.E)).Bytes()), base64.RawURLEncoding.EncodeToString(k.N.Bytes()))
	default:
		return "", checkKey(pub)
	}
	sum := sha256.Sum256([]byte(members))
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}
