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
	"slices"
	"strings"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

func bundleSet(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var id, path, document *string
	cmd := verb(p, "set", "Store the bundle of another trust domain, in place of what is there", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		if *id == "" {
			return cli.Hint(errors.New("id flag is required"), "-id names the trust domain, such as spiffe://example.org")
		}
		kind, err := documentFormat(*document)
		if err != nil {
			return err
		}
		data, err := readInput(cmd.InOrStdin(), *path)
		if err != nil {
			return fmt.Errorf("unable to load bundle data: %w", err)
		}
		b, err := parseBundle(data, kind, *id)
		if err != nil {
			return err
		}
		resp, err := bundlev1.NewBundleClient(conn).BatchSetFederatedBundle(ctx, &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{b}})
		if err != nil {
			return fmt.Errorf("failed to set federated bundle: %w", err)
		}
		var refused error
		for _, r := range resp.GetResults() {
			if code(r.GetStatus()) != codes.OK {
				refused = fmt.Errorf("failed to set federated bundle: %s", r.GetStatus().GetMessage())
			}
		}
		return printResult(cmd, p, format, resp, "bundle set.", refused)
	})
	format = cli.OutputFlag(cmd.Flags())
	id = trustDomainFlag(cmd.Flags())
	path = cmd.Flags().String("path", "", "the file with the bundle; default standard input")
	document = cmd.Flags().String("format", formatPEM, "pem, which has X.509 authorities only, or spiffe, a SPIFFE bundle document")
	return cmd
}

func bundleDelete(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var id, mode *string
	cmd := verb(p, "delete", "Delete the bundle of another trust domain", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		if *id == "" {
			return cli.Hint(errors.New("id is required"), "`bundle list` shows the trust domains")
		}
		m, ok := bundlev1.BatchDeleteFederatedBundleRequest_Mode_value[strings.ToUpper(*mode)]
		if !ok && *mode != "" {
			return cli.Hint(fmt.Errorf("unsupported mode %q", *mode), "use "+deleteModes)
		}
		resp, err := bundlev1.NewBundleClient(conn).BatchDeleteFederatedBundle(ctx, &bundlev1.BatchDeleteFederatedBundleRequest{
			TrustDomains: []string{*id}, Mode: bundlev1.BatchDeleteFederatedBundleRequest_Mode(m),
		})
		if err != nil {
			return fmt.Errorf("failed to delete federated bundle: %w", err)
		}
		var refused error
		for _, r := range resp.GetResults() {
			if code(r.GetStatus()) != codes.OK {
				refused = fmt.Errorf("failed to delete federated bundle %q: %s", r.GetTrustDomain(), r.GetStatus().GetMessage())
			}
		}
		return printResult(cmd, p, format, resp, "bundle deleted.", refused)
	})
	format = cli.OutputFlag(cmd.Flags())
	id = trustDomainFlag(cmd.Flags())
	mode = cmd.Flags().String("mode", "restrict", "what becomes of entries that federate with it: "+deleteModes)
	return cmd
}

const deleteModes = "restrict (they forbid deleting), dissociate (they stop federating) or delete (they go too)"

func trustDomainFlag(flags *pflag.FlagSet) *string {
	return flags.String("id", "", "the trust domain's SPIFFE ID or name")
}

// readInput reads a file, or standard input if path is empty.
func readInput(stdin io.Reader, path string) ([]byte, error) {
	if path == "" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(path)
}

// parseBundle reads a bundle that is written in the format, for the trust
// domain. PEM holds X.509 authorities and nothing else.
func parseBundle(data []byte, format, trustDomain string) (*types.Bundle, error) {
	if format == formatPEM {
		b := &types.Bundle{TrustDomain: trustDomain}
		certs, err := parseCertificates(data)
		if err != nil {
			return nil, fmt.Errorf("unable to parse bundle data: %w", err)
		}
		b.X509Authorities = certs
		return b, nil
	}
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, err
	}
	doc, err := spiffebundle.Parse(td, data)
	if err != nil {
		return nil, fmt.Errorf("unable to parse to spiffe bundle: %w", err)
	}
	return documentToWire(doc)
}

func parseCertificates(data []byte) ([]*types.X509Certificate, error) {
	var out []*types.X509Certificate
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a PEM block is %s, not CERTIFICATE", block.Type)
		}
		certs, err := x509.ParseCertificates(block.Bytes)
		if err != nil {
			return nil, err
		}
		for _, cert := range certs {
			out = append(out, &types.X509Certificate{Asn1: cert.Raw})
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no PEM blocks")
	}
	return out, nil
}

// documentToWire is a SPIFFE bundle document as SPIRE's API has it.
func documentToWire(doc *spiffebundle.Bundle) (*types.Bundle, error) {
	b := &types.Bundle{TrustDomain: doc.TrustDomain().Name()}
	for _, cert := range doc.X509Authorities() {
		b.X509Authorities = append(b.X509Authorities, &types.X509Certificate{Asn1: cert.Raw})
	}
	keys := doc.JWTAuthorities()
	for _, id := range slices.Sorted(maps.Keys(keys)) {
		pkix, err := x509.MarshalPKIXPublicKey(keys[id])
		if err != nil {
			return nil, fmt.Errorf("reading the bundle's JWT key %s: %w", id, err)
		}
		b.JwtAuthorities = append(b.JwtAuthorities, &types.JWTKey{KeyId: id, PublicKey: pkix})
	}
	if hint, ok := doc.RefreshHint(); ok {
		b.RefreshHint = int64(hint.Seconds())
	}
	if n, ok := doc.SequenceNumber(); ok {
		b.SequenceNumber = n
	}
	return b, nil
}
