package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
)

func bundleShow(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var document *string
	cmd := verb(p, "show", "Print the trust domain's own bundle", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		b, err := bundlev1.NewBundleClient(conn).GetBundle(ctx, &bundlev1.GetBundleRequest{})
		if err != nil {
			return err
		}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error { return printBundle(w, b, *document) }, b)
	})
	format = cli.OutputFlag(cmd.Flags())
	document = documentFlag(cmd.Flags())
	return cmd
}

func bundleList(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var id, document *string
	cmd := verb(p, "list", "Print the bundles of other trust domains", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		client := bundlev1.NewBundleClient(conn)
		if *id != "" {
			b, err := client.GetFederatedBundle(ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: *id})
			if err != nil {
				return err
			}
			return format.Print(cmd.OutOrStdout(), func(w io.Writer) error { return printBundle(w, b, *document) }, b)
		}
		all := &bundlev1.ListFederatedBundlesResponse{}
		var err error
		if all.Bundles, err = listBundles(ctx, client); err != nil {
			return err
		}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error { return printBundles(w, all.GetBundles(), *document) }, all)
	})
	format = cli.OutputFlag(cmd.Flags())
	id = trustDomainFlag(cmd.Flags())
	document = documentFlag(cmd.Flags())
	return cmd
}

func bundleCount(p cli.Persona) *cobra.Command {
	var format *cli.Format
	cmd := verb(p, "count", "Count bundles, the trust domain's own among them", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		resp, err := bundlev1.NewBundleClient(conn).CountBundles(ctx, &bundlev1.CountBundlesRequest{})
		if err != nil {
			return err
		}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
			_, err := fmt.Fprintln(w, counted(resp.GetCount(), "bundle", "bundles"))
			return err
		}, resp)
	})
	format = cli.OutputFlag(cmd.Flags())
	return cmd
}

// bundlePage is how many bundles one call asks for: each has up to some dozen
// certificates.
const bundlePage = 50

// listBundles gets the bundles of all other trust domains, page by page.
func listBundles(ctx context.Context, client bundlev1.BundleClient) ([]*types.Bundle, error) {
	var all []*types.Bundle
	for token := ""; ; {
		page, err := client.ListFederatedBundles(ctx, &bundlev1.ListFederatedBundlesRequest{PageSize: bundlePage, PageToken: token})
		if err != nil {
			return nil, err
		}
		all = append(all, page.GetBundles()...)
		if token = page.GetNextPageToken(); token == "" {
			return all, nil
		}
	}
}

// The formats of bundles in files.
const (
	formatPEM    = "pem"
	formatSPIFFE = "spiffe"
)

func documentFlag(flags *pflag.FlagSet) *string {
	return flags.String("format", formatPEM, "how to print it if -output is pretty: pem, or spiffe, a SPIFFE bundle document")
}

// documentFormat reads the name of a bundle's format; pem if there is none.
func documentFormat(name string) (string, error) {
	switch format := strings.ToLower(name); format {
	case "":
		return formatPEM, nil
	case formatPEM, formatSPIFFE:
		return format, nil
	default:
		return "", cli.Hint(fmt.Errorf("invalid format: %q", format), "use pem or spiffe")
	}
}

// bundleHeader precedes each bundle of a list.
const bundleHeader = `****************************************
* %s
****************************************
`

func printBundles(w io.Writer, bundles []*types.Bundle, format string) error {
	for i, b := range bundles {
		out := printer{w: w}
		if i > 0 {
			out.printf("\n")
		}
		out.printf(bundleHeader, b.GetTrustDomain())
		if out.err != nil {
			return out.err
		}
		if err := printBundle(w, b, format); err != nil {
			return err
		}
	}
	return nil
}

func printBundle(w io.Writer, b *types.Bundle, format string) error {
	format, err := documentFormat(format)
	if err != nil {
		return err
	}
	if format == formatPEM {
		return printCertificates(w, authorities(b))
	}
	return printDocument(w, b)
}

// authorities are the X.509 authorities of a bundle, DER.
func authorities(b *types.Bundle) [][]byte {
	out := make([][]byte, 0, len(b.GetX509Authorities()))
	for _, a := range b.GetX509Authorities() {
		out = append(out, a.GetAsn1())
	}
	return out
}

func printCertificates(w io.Writer, ders [][]byte) error {
	for _, der := range ders {
		if err := pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return err
		}
	}
	return nil
}

// printDocument writes a SPIFFE bundle document, indented.
func printDocument(w io.Writer, b *types.Bundle) error {
	td, err := spiffeid.TrustDomainFromString(b.GetTrustDomain())
	if err != nil {
		return fmt.Errorf("reading the bundle: %w", err)
	}
	doc := spiffebundle.New(td)
	for _, der := range authorities(b) {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("reading the bundle: %w", err)
		}
		doc.AddX509Authority(cert)
	}
	for _, k := range b.GetJwtAuthorities() {
		key, err := x509.ParsePKIXPublicKey(k.GetPublicKey())
		if err == nil {
			err = doc.AddJWTAuthority(k.GetKeyId(), key)
		}
		if err != nil {
			return fmt.Errorf("reading the bundle's JWT key %s: %w", k.GetKeyId(), err)
		}
	}
	if b.GetRefreshHint() > 0 {
		doc.SetRefreshHint(time.Duration(b.GetRefreshHint()) * time.Second)
	}
	if b.GetSequenceNumber() > 0 {
		doc.SetSequenceNumber(b.GetSequenceNumber())
	}
	text, err := doc.Marshal()
	if err != nil {
		return fmt.Errorf("writing the bundle document: %w", err)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, text, "", "    "); err != nil {
		return fmt.Errorf("writing the bundle document: %w", err)
	}
	_, err = fmt.Fprintln(w, indented.String())
	return err
}
