package registry

import (
	"net/url"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Limits of bundles and federation relationships.
const (
	// maxTrustDomain bounds the name of a trust domain, in bytes (SPIFFE-ID,
	// 2.1).
	maxTrustDomain = 255
	// maxAuthorities bounds the authorities of each kind in one bundle.
	maxAuthorities = 1000
	// maxAppended is how large, in bytes, authorities of others can make this
	// trust domain's bundle. What is left of maxRecord is for its servers' own:
	// one that finds no room cannot sign any more.
	maxAppended = 384 << 10
	// maxKeyID bounds a key's ID, in bytes.
	maxKeyID = 1024
	// maxURL bounds the URL of a bundle endpoint, in bytes.
	maxURL = 2048
)

// Validate holds a bundle against every rule that needs no other record. That
// the authorities are certificates and keys is checked where they come in
// ([BundleFromWire]). The error is an [InvalidError].
func (b *Bundle) Validate() error {
	if err := checkRefreshHint(b.RefreshHint); err != nil {
		return err
	}
	if err := checkCount("x509_authorities", len(b.X509Authorities)); err != nil {
		return err
	}
	for _, a := range b.X509Authorities {
		if len(a.DER) == 0 {
			return invalid("x509_authorities", "an authority is empty")
		}
	}
	if err := checkCount("jwt_authorities", len(b.JWTAuthorities)); err != nil {
		return err
	}
	if err := checkCount("wit_authorities", len(b.WITAuthorities)); err != nil {
		return err
	}
	seen := make(map[string]bool, len(b.JWTAuthorities)+len(b.WITAuthorities))
	for _, a := range b.JWTAuthorities {
		if err := checkKey("jwt_authorities", a.KeyID, a.PKIX, seen); err != nil {
			return err
		}
	}
	for _, a := range b.WITAuthorities {
		if err := checkKey("wit_authorities", a.KeyID, a.PKIX, seen); err != nil {
			return err
		}
	}
	return nil
}

func checkRefreshHint(hint time.Duration) error {
	if hint < 0 || hint > maxRefreshHint || hint%time.Second != 0 {
		return invalid("refresh_hint", "must be between 0 and %d whole seconds", int64(maxRefreshHint/time.Second))
	}
	return nil
}

func checkCount(field string, n int) error {
	if n > maxAuthorities {
		return invalid(field, "are %d, at most %d are allowed", n, maxAuthorities)
	}
	return nil
}

// checkKey holds that a key ID names one key of the whole bundle: who verifies a
// token finds the key by it.
func checkKey(field, id string, pkix []byte, seen map[string]bool) error {
	switch {
	case id == "":
		return invalid(field, "missing key ID")
	case len(id) > maxKeyID:
		return invalid(field, "a key ID is %d bytes long, at most %d are allowed", len(id), maxKeyID)
	case !utf8.ValidString(id):
		return invalid(field, "a key ID is not UTF-8")
	case len(pkix) == 0:
		return invalid(field, "key %.64q is empty", id)
	case seen[id]:
		return errTaken(field, id)
	}
	seen[id] = true
	return nil
}

// Validate holds a relationship against every rule that needs no other record.
// The error is an [InvalidError].
func (f *FederationRelationship) Validate() error {
	if f.TrustDomain.IsZero() {
		return invalid("trust_domain", "is required")
	}
	if rule := endpointRule(f.EndpointURL); rule != "" {
		return invalid("bundle_endpoint_url", "%s", rule)
	}
	if n := len(f.EndpointSPIFFEID.String()); n > maxSPIFFEID {
		return invalid("bundle_endpoint_profile", "endpoint SPIFFE ID is %d bytes long, at most %d are allowed", n, maxSPIFFEID)
	}
	return nil
}

// endpointRule returns the rule that the URL of a bundle endpoint breaks, or
// nothing (SPIFFE Federation, 5.1 and 5.2). It does not quote the URL, which can
// hold a password.
func endpointRule(text string) string {
	if text == "" {
		return "is required"
	}
	if len(text) > maxURL {
		return "is longer than 2048 bytes"
	}
	u, err := url.Parse(text)
	switch {
	case !utf8.ValidString(text):
		return "is not UTF-8"
	case err != nil:
		return "is not a URL"
	case u.Scheme != "https":
		return "must use the https scheme"
	case u.Hostname() == "":
		return "must specify the host"
	case !portInRange(u.Port()):
		return "has a port that is not between 1 and 65535"
	case u.User != nil:
		return "must not contain user info"
	}
	return ""
}

// portInRange says whether text is empty or a TCP port.
func portInRange(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return text == "" || err == nil && n > 0
}

// normalizeDomains sorts and removes repeats.
func normalizeDomains(in []spiffeid.TrustDomain) []spiffeid.TrustDomain {
	if len(in) == 0 {
		return nil
	}
	out := slices.Clone(in)
	slices.SortFunc(out, spiffeid.TrustDomain.Compare)
	return slices.Compact(out)
}
