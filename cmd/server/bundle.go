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
	document = cmd.Flags().String("format", "pem", "pem or spiffe, a SPIFFE bundle document")
	return cmd
}

func printBundle(w io.Writer, b *types.Bundle, format string) error {
	switch strings.ToLower(format) {
	case "pem", "":
		return printCertificates(w, authorities(b))
	case "spiffe":
		return printDocument(w, b)
	}
	return fmt.Errorf("-format %q is not known; use pem or spiffe", format)
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
