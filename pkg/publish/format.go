package publish

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/credence-id/credence/pkg/registry"
)

// Format is a form of a bundle.
type Format string

// Formats, by SPIRE's names.
const (
	// SPIFFE is the bundle document of SPIFFE Trust Domain and Bundle, section
	// 4, without keys of WIT-SVIDs: readers that do not know these refuse the
	// whole document.
	SPIFFE Format = "spiffe"
	// JWKS is the same keys without what SPIFFE adds (RFC 7517).
	JWKS Format = "jwks"
	// PEM is the X.509 authorities alone.
	PEM Format = "pem"
)

// ParseFormat reads a format's name, in any case.
func ParseFormat(name string) (Format, error) {
	switch f := Format(strings.ToLower(name)); f {
	case SPIFFE, JWKS, PEM:
		return f, nil
	}
	return "", fmt.Errorf("%q is not known; use spiffe, jwks or pem", name)
}

// document is a bundle in JSON.
type document struct {
	Keys        []jose.JSONWebKey `json:"keys"`
	Sequence    uint64            `json:"spiffe_sequence,omitempty"`
	RefreshHint int64             `json:"spiffe_refresh_hint,omitempty"` // seconds
}

// Encode writes the bundle in a format, in the order that it has, so that one
// bundle is the same bytes everywhere. A refresh hint that is not zero replaces
// the bundle's own; only the format spiffe has one.
func Encode(b *registry.Bundle, f Format, refreshHint time.Duration) ([]byte, error) {
	if f == PEM {
		return encodePEM(b)
	}
	doc := document{Keys: []jose.JSONWebKey{}}
	x509Use, jwtUse := "", ""
	if f == SPIFFE {
		x509Use, jwtUse = "x509-svid", "jwt-svid"
		doc.Sequence = b.SequenceNumber
		if refreshHint == 0 {
			refreshHint = b.RefreshHint
		}
		doc.RefreshHint = int64((refreshHint + time.Second - 1) / time.Second)
	}
	for _, a := range b.X509Authorities {
		cert, err := x509.ParseCertificate(a.DER)
		if err != nil {
			return nil, fmt.Errorf("reading an X.509 authority of the bundle: %w", err)
		}
		doc.Keys = append(doc.Keys, jose.JSONWebKey{Key: cert.PublicKey, Certificates: []*x509.Certificate{cert}, Use: x509Use})
	}
	for _, a := range b.JWTAuthorities {
		key, err := x509.ParsePKIXPublicKey(a.PKIX)
		if err != nil {
			return nil, fmt.Errorf("reading the JWT authority %q of the bundle: %w", a.KeyID, err)
		}
		doc.Keys = append(doc.Keys, jose.JSONWebKey{Key: key, KeyID: a.KeyID, Use: jwtUse})
	}
	out, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("writing the bundle: %w", err)
	}
	return out, nil
}

func encodePEM(b *registry.Bundle) ([]byte, error) {
	var out bytes.Buffer
	for _, a := range b.X509Authorities {
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: a.DER}); err != nil {
			return nil, fmt.Errorf("writing the bundle: %w", err)
		}
	}
	return out.Bytes(), nil
}
