package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/credence-id/credence/pkg/atomicfile"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// x509SVID is one SVID of an answer, parsed.
type x509SVID struct {
	id, hint string
	chain    []*x509.Certificate
	key      []byte // PKCS#8, DER
	bundle   []*x509.Certificate
}

// bundles is certificates by trust domain, as the answer names it.
type bundles map[string][]*x509.Certificate

func (b bundles) names() []string { return slices.Sorted(maps.Keys(b)) }

// readX509 parses an answer, and holds each SVID against its bundle.
func readX509(resp *workload.X509SVIDResponse) ([]x509SVID, bundles, error) {
	if len(resp.GetSvids()) == 0 {
		return nil, nil, errors.New("workload response contains no svids")
	}
	federated := make(bundles)
	for td, der := range resp.GetFederatedBundles() {
		certs, err := parseCertificates(der, "the bundle")
		if err != nil {
			return nil, nil, fmt.Errorf("reading the bundle of %s: %w", td, err)
		}
		federated[td] = certs
	}
	svids := make([]x509SVID, 0, len(resp.GetSvids()))
	for _, s := range resp.GetSvids() {
		svid, err := readSVID(s)
		if err != nil {
			return nil, nil, fmt.Errorf("reading the SVID of %s: %w", s.GetSpiffeId(), err)
		}
		svids = append(svids, svid)
	}
	return svids, federated, nil
}

func readSVID(s *workload.X509SVID) (x509SVID, error) {
	chain, err := parseCertificates(s.GetX509Svid(), "the SVID")
	if err != nil {
		return x509SVID{}, err
	}
	if _, err := x509.ParsePKCS8PrivateKey(s.GetX509SvidKey()); err != nil {
		return x509SVID{}, errors.New("the private key is not PKCS#8") // the library's error could say too much of it
	}
	bundle, err := parseCertificates(s.GetBundle(), "the bundle")
	if err != nil {
		return x509SVID{}, err
	}
	id, err := spiffeid.FromString(s.GetSpiffeId())
	if err != nil {
		return x509SVID{}, err
	}
	if _, _, err := x509svid.Verify(chain, x509bundle.FromX509Authorities(id.TrustDomain(), bundle)); err != nil {
		return x509SVID{}, fmt.Errorf("%q SVID failed verification against bundle: %w", s.GetSpiffeId(), err)
	}
	return x509SVID{s.GetSpiffeId(), s.GetHint(), chain, s.GetX509SvidKey(), bundle}, nil
}

func parseCertificates(der []byte, what string) ([]*x509.Certificate, error) {
	certs, err := x509.ParseCertificates(der)
	if err == nil && len(certs) == 0 {
		err = fmt.Errorf("%s has no certificate", what)
	}
	return certs, err
}

// printX509 writes what scripts made for SPIRE read.
func (p *printer) printX509(svids []x509SVID, federated bundles, took time.Duration) {
	plural := "s"
	if len(svids) == 1 {
		plural = ""
	}
	p.printf("Received %d svid%s after %s\n", len(svids), plural, took)
	for _, s := range svids {
		p.printf("\nSPIFFE ID:\t\t%s\n", s.id)
		if s.hint != "" {
			p.printf("Hint:\t\t\t%s\n", s.hint)
		}
		p.validity("SVID", s.chain[0])
		for i, c := range s.chain[1:] {
			p.validity(fmt.Sprintf("Intermediate #%d", i+1), c)
		}
		for i, c := range s.bundle {
			p.validity(fmt.Sprintf("CA #%d", i+1), c)
		}
		for _, td := range federated.names() {
			for i, c := range federated[td] {
				p.validity(fmt.Sprintf("[%s] CA #%d", td, i+1), c)
			}
		}
	}
	p.printf("\n")
}

func (p *printer) validity(what string, c *x509.Certificate) {
	p.printf("%s Valid After:\t%v\n", what, c.NotBefore)
	p.printf("%s Valid Until:\t%v\n", what, c.NotAfter)
}

// writeX509 writes one set of PEM files an SVID, each of them whole or not at
// all; keys are mode 0600.
func (p *printer) writeX509(dir string, svids []x509SVID, federated bundles) {
	for i, s := range svids {
		p.file(fmt.Sprintf("SVID #%d", i), filepath.Join(dir, fmt.Sprintf("svid.%d.pem", i)), certificates(s.chain), 0o644)
		key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: s.key})
		p.file(fmt.Sprintf("key #%d", i), filepath.Join(dir, fmt.Sprintf("svid.%d.key", i)), key, 0o600)
		p.file(fmt.Sprintf("bundle #%d", i), filepath.Join(dir, fmt.Sprintf("bundle.%d.pem", i)), certificates(s.bundle), 0o644)
		for j, td := range federated.names() {
			p.file(fmt.Sprintf("federated bundle #%d for trust domain %s", j, td),
				filepath.Join(dir, fmt.Sprintf("federated_bundle.%d.%d.pem", i, j)), certificates(federated[td]), 0o644)
		}
	}
}

func certificates(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

func (p *printer) file(what, path string, data []byte, perm os.FileMode) {
	p.printf("Writing %s to file %s.\n", what, path)
	if p.err == nil {
		p.err = atomicfile.Write(path, data, perm)
	}
}
