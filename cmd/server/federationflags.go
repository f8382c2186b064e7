package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/pflag"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// The profiles of bundle endpoints, SPIFFE Federation §5.2.
const (
	profileWeb    = "https_web"
	profileSPIFFE = "https_spiffe"
)

// relationship is a federation relationship as flags, or an item of -data, say
// it.
type relationship struct {
	TrustDomain             string          `json:"trustDomain"`
	BundleEndpointURL       string          `json:"bundleEndpointURL"`
	BundleEndpointProfile   string          `json:"bundleEndpointProfile"`
	EndpointSPIFFEID        string          `json:"endpointSPIFFEID"`
	TrustDomainBundle       json.RawMessage `json:"trustDomainBundle"`
	TrustDomainBundleFormat string          `json:"trustDomainBundleFormat"`
	bundlePath              string          // flags only
}

// federationFlags are the flags of create and update.
type federationFlags struct {
	flags *pflag.FlagSet
	data  string
	one   relationship
}

// relationshipFlags are those that -data replaces.
var relationshipFlags = []string{"trustDomain", "bundleEndpointURL", "bundleEndpointProfile", "endpointSpiffeID", "trustDomainBundlePath", "trustDomainBundleFormat"}

func newFederationFlags(flags *pflag.FlagSet) *federationFlags {
	f := &federationFlags{flags: flags}
	flags.StringVar(&f.data, "data", "", "a JSON file with relationships, or - for standard input; instead of the other flags")
	flags.StringVar(&f.one.TrustDomain, "trustDomain", "", "the trust domain to federate with, such as example.org")
	flags.StringVar(&f.one.BundleEndpointURL, "bundleEndpointURL", "", "where its bundle is served, an https URL")
	flags.StringVar(&f.one.BundleEndpointProfile, "bundleEndpointProfile", "", "how that server proves itself: "+profileWeb+" or "+profileSPIFFE)
	flags.StringVar(&f.one.EndpointSPIFFEID, "endpointSpiffeID", "", "that server's SPIFFE ID; "+profileSPIFFE+" only")
	flags.StringVar(&f.one.bundlePath, "trustDomainBundlePath", "", "a file with the bundle to begin with")
	flags.StringVar(&f.one.TrustDomainBundleFormat, "trustDomainBundleFormat", formatPEM, "the format of that file: pem or spiffe")
	return f
}

// relationships are what the flags ask for, or the file they name.
func (f *federationFlags) relationships(stdin io.Reader) ([]*types.FederationRelationship, error) {
	if f.data == "" {
		r, err := f.one.toWire()
		if err != nil {
			return nil, err
		}
		return []*types.FederationRelationship{r}, nil
	}
	for _, name := range relationshipFlags {
		if f.flags.Changed(name) {
			return nil, cli.Hint(errors.New("cannot use other flags to specify relationship fields when 'data' flag is set"), "remove -"+name)
		}
	}
	path := f.data
	if path == "-" {
		path = ""
	}
	text, err := readInput(stdin, path)
	if err != nil {
		return nil, err
	}
	return parseRelationships(text)
}

func parseRelationships(text []byte) ([]*types.FederationRelationship, error) {
	var file struct {
		FederationRelationships []*relationship `json:"federationRelationships"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, cli.Hint(fmt.Errorf("failed to parse JSON: %w", err), `it is of the form {"federationRelationships": [{"trustDomain": "…"}]}`)
	}
	var out []*types.FederationRelationship
	for i, r := range file.FederationRelationships {
		if r == nil {
			return nil, fmt.Errorf("could not parse item %d: it is null", i)
		}
		w, err := r.toWire()
		if err != nil {
			return nil, fmt.Errorf("could not parse item %d: %w", i, err)
		}
		out = append(out, w)
	}
	return out, nil
}

// toWire checks a relationship, in SPIRE's words, and makes the message.
func (r *relationship) toWire() (*types.FederationRelationship, error) {
	switch {
	case r.TrustDomain == "":
		return nil, errors.New("trust domain is required")
	case r.BundleEndpointURL == "":
		return nil, errors.New("bundle endpoint URL is required")
	}
	w := &types.FederationRelationship{TrustDomain: r.TrustDomain, BundleEndpointUrl: r.BundleEndpointURL}
	bundleOf := r.TrustDomain
	switch r.BundleEndpointProfile {
	case profileWeb:
		w.BundleEndpointProfile = &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}}
	case profileSPIFFE:
		if r.EndpointSPIFFEID == "" {
			return nil, errors.New("endpoint SPIFFE ID is required if 'https_spiffe' endpoint profile is set")
		}
		id, err := spiffeid.FromString(r.EndpointSPIFFEID)
		if err != nil {
			return nil, fmt.Errorf("cannot parse bundle endpoint SPIFFE ID: %w", err)
		}
		bundleOf = id.TrustDomain().Name()
		w.BundleEndpointProfile = &types.FederationRelationship_HttpsSpiffe{HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: r.EndpointSPIFFEID}}
	default:
		return nil, cli.Hint(fmt.Errorf("unknown bundle endpoint profile type: %q", r.BundleEndpointProfile), "use "+profileWeb+" or "+profileSPIFFE)
	}
	var err error
	w.TrustDomainBundle, err = r.bundle(bundleOf)
	return w, err
}

// bundle reads the bundle that comes with a relationship; nil if none does.
func (r *relationship) bundle(trustDomain string) (*types.Bundle, error) {
	switch {
	case r.bundlePath != "":
		format, err := documentFormat(r.TrustDomainBundleFormat)
		if err != nil {
			return nil, err
		}
		data, err := readInput(nil, r.bundlePath)
		if err != nil {
			return nil, fmt.Errorf("cannot read bundle file: %w", err)
		}
		b, err := parseBundle(data, format, trustDomain)
		if err != nil {
			return nil, fmt.Errorf("cannot parse bundle file: %w", err)
		}
		return b, nil
	case len(r.TrustDomainBundle) > 0:
		b, err := r.embedded(trustDomain)
		if err != nil {
			return nil, fmt.Errorf("cannot parse bundle raw message: %w", err)
		}
		return b, nil
	}
	return nil, nil
}

// embedded reads a bundle inside -data: a JSON string of PEM, or the document
// itself.
func (r *relationship) embedded(trustDomain string) (*types.Bundle, error) {
	switch r.TrustDomainBundleFormat {
	case formatPEM:
		var text string
		if err := json.Unmarshal(r.TrustDomainBundle, &text); err != nil {
			return nil, fmt.Errorf("failed to unmarshal json: %w", err)
		}
		return parseBundle([]byte(text), formatPEM, trustDomain)
	case formatSPIFFE:
		return parseBundle(r.TrustDomainBundle, formatSPIFFE, trustDomain)
	}
	return nil, cli.Hint(fmt.Errorf("bundle format %q is unsupported", r.TrustDomainBundleFormat), "set trustDomainBundleFormat to pem or spiffe")
}
