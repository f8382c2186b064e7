package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/credence-id/credence/pkg/atomicfile"
	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
)

// fetchCommand is `api fetch`, which alone does what `api fetch x509` does.
func fetchCommand(p cli.Persona) *cobra.Command {
	cmd := fetchX509Command(p)
	cmd.Use = "fetch"
	cmd.Short = "Fetch SVIDs; alone, X509-SVIDs"
	return cmd
}

func fetchX509Command(p cli.Persona) *cobra.Command {
	cmd := &cobra.Command{Use: "x509", Short: "Fetch X509-SVIDs", Args: cobra.NoArgs}
	c := newClient(cmd.Flags(), p)
	format := cli.OutputFlag(cmd.Flags())
	silent := cmd.Flags().Bool("silent", false, "print nothing")
	dir := cmd.Flags().String("write", "", "write SVIDs, keys and bundles as PEM to this folder")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		start := time.Now()
		var resp *workload.X509SVIDResponse
		err := c.call(cmd, func(ctx context.Context, api workload.SpiffeWorkloadAPIClient) error {
			stream, err := api.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
			if err == nil {
				resp, err = stream.Recv()
			}
			return err
		})
		if err != nil {
			return err
		}
		took := time.Since(start)
		out := cmd.OutOrStdout()
		if *silent {
			out = io.Discard
		}
		pretty := func(w io.Writer) error {
			svids, federated, err := readX509(resp)
			if err == nil {
				err = printX509(w, svids, federated, took)
			}
			if err == nil && *dir != "" {
				err = writeX509(cmd.OutOrStdout(), *dir, svids, federated)
			}
			return err
		}
		return format.Print(out, pretty, resp)
	}
	return cmd
}

// x509SVID is one SVID of an answer, parsed.
type x509SVID struct {
	id, hint string
	chain    []*x509.Certificate
	key      []byte // PKCS#8, DER
	bundle   []*x509.Certificate
}

// bundles is certificates by trust domain ID.
type bundles map[string][]*x509.Certificate

func (b bundles) names() []string { return slices.Sorted(maps.Keys(b)) }

func readX509(resp *workload.X509SVIDResponse) ([]x509SVID, bundles, error) {
	federated := make(bundles)
	for td, der := range resp.GetFederatedBundles() {
		certs, err := x509.ParseCertificates(der)
		if err != nil {
			return nil, nil, fmt.Errorf("reading the bundle of %s: %w", td, err)
		}
		federated[td] = certs
	}
	svids := make([]x509SVID, 0, len(resp.GetSvids()))
	for _, s := range resp.GetSvids() {
		chain, err := x509.ParseCertificates(s.GetX509Svid())
		if err == nil && len(chain) == 0 {
			err = errors.New("no certificate")
		}
		if err != nil {
			return nil, nil, fmt.Errorf("reading the SVID of %s: %w", s.GetSpiffeId(), err)
		}
		if _, err := x509.ParsePKCS8PrivateKey(s.GetX509SvidKey()); err != nil {
			return nil, nil, fmt.Errorf("reading the key of %s: %w", s.GetSpiffeId(), err)
		}
		bundle, err := x509.ParseCertificates(s.GetBundle())
		if err != nil {
			return nil, nil, fmt.Errorf("reading the bundle of %s: %w", s.GetSpiffeId(), err)
		}
		svids = append(svids, x509SVID{s.GetSpiffeId(), s.GetHint(), chain, s.GetX509SvidKey(), bundle})
	}
	return svids, federated, nil
}

// printX509 writes what scripts made for SPIRE read.
func printX509(w io.Writer, svids []x509SVID, federated bundles, took time.Duration) error {
	p := printer{w: w}
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
	return p.err
}

// writeX509 writes one set of PEM files an SVID; keys are mode 0600.
func writeX509(w io.Writer, dir string, svids []x509SVID, federated bundles) error {
	p := printer{w: w}
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
	return p.err
}

func certificates(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// printer keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

func (p *printer) validity(what string, c *x509.Certificate) {
	p.printf("%s Valid After:\t%v\n", what, c.NotBefore)
	p.printf("%s Valid Until:\t%v\n", what, c.NotAfter)
}

func (p *printer) file(what, path string, data []byte, perm os.FileMode) {
	p.printf("Writing %s to file %s.\n", what, path)
	if p.err == nil {
		p.err = atomicfile.Write(path, data, perm)
	}
}

func fetchJWTCommand(p cli.Persona) *cobra.Command {
	cmd := &cobra.Command{Use: "jwt", Short: "Fetch JWT-SVIDs", Args: cobra.NoArgs}
	c := newClient(cmd.Flags(), p)
	format := cli.OutputFlag(cmd.Flags())
	audience := cmd.Flags().StringSlice("audience", nil, "comma separated list of audience values")
	spiffeID := cmd.Flags().String("spiffeID", "", "SPIFFE ID of the subject; default all")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(*audience) == 0 {
			return cli.Hint(errors.New("audience must be specified"), "-audience names who the token is for, such as -audience my-service")
		}
		var tokens *workload.JWTSVIDResponse
		var jwks *workload.JWTBundlesResponse
		err := c.call(cmd, func(ctx context.Context, api workload.SpiffeWorkloadAPIClient) error {
			stream, err := api.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
			if err == nil {
				jwks, err = stream.Recv()
			}
			if err == nil {
				tokens, err = api.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: *audience, SpiffeId: *spiffeID})
			}
			return err
		})
		if err != nil {
			return err
		}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error { return printJWT(w, tokens, jwks) }, tokens, jwks)
	}
	return cmd
}

func printJWT(w io.Writer, tokens *workload.JWTSVIDResponse, jwks *workload.JWTBundlesResponse) error {
	p := printer{w: w}
	for _, s := range tokens.GetSvids() {
		p.printf("token(%s):\n\t%s\n", s.GetSpiffeId(), s.GetSvid())
		if s.GetHint() != "" {
			p.printf("hint(%s):\n\t%s\n", s.GetSpiffeId(), s.GetHint())
		}
	}
	for _, td := range slices.Sorted(maps.Keys(jwks.GetBundles())) {
		p.printf("bundle(%s):\n\t%s\n", td, jwks.GetBundles()[td])
	}
	return p.err
}
