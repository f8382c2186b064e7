package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/credence-id/credence/pkg/atomicfile"
	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc"
)

// minted is what `x509 mint` prints in JSON: DER, base64.
type minted struct {
	X509SVID   [][]byte `json:"x509_svid"`
	PrivateKey []byte   `json:"private_key"`
	RootCAs    [][]byte `json:"root_cas"`
}

func x509Mint(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var spiffeID, dir *string
	var ttl *time.Duration
	var dns *[]string
	cmd := verb(p, "mint", "Mint an X509-SVID", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		m, expires, err := mintX509(ctx, conn, *spiffeID, *dns, *ttl)
		if err != nil {
			return err
		}
		if err := warnCapped(cmd.ErrOrStderr(), "X509-SVID", expires, *ttl); err != nil {
			return err
		}
		if *dir != "" {
			return m.write(cmd.OutOrStdout(), *dir)
		}
		return format.PrintValue(cmd.OutOrStdout(), m.print, m)
	})
	format = cli.OutputFlag(cmd.Flags())
	spiffeID = cmd.Flags().String("spiffeID", "", "the SPIFFE ID to issue")
	ttl = cmd.Flags().Duration("ttl", 0, "lifetime; 0: the server's default")
	dns = cmd.Flags().StringArray("dns", nil, "DNS name in the X509-SVID; may be repeated")
	dir = cmd.Flags().String("write", "", "write svid.pem, key.pem and bundle.pem to this folder")
	return cmd
}

func mintX509(ctx context.Context, conn grpc.ClientConnInterface, spiffeID string, dns []string, ttl time.Duration) (*minted, time.Time, error) {
	var none time.Time
	if spiffeID == "" {
		return nil, none, errors.New("spiffeID must be specified")
	}
	id, err := parseID("spiffeID", spiffeID)
	if err != nil {
		return nil, none, err
	}
	seconds, err := wholeSeconds(ttl)
	if err != nil {
		return nil, none, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, none, fmt.Errorf("making a key: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, none, fmt.Errorf("encoding the key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{{Scheme: "spiffe", Host: id.GetTrustDomain(), Path: id.GetPath()}}, DNSNames: dns}, key)
	if err != nil {
		return nil, none, fmt.Errorf("making a CSR: %w", err)
	}
	resp, err := svidv1.NewSVIDClient(conn).MintX509SVID(ctx, &svidv1.MintX509SVIDRequest{Csr: csr, Ttl: seconds})
	if err != nil {
		return nil, none, fmt.Errorf("unable to mint SVID: %w", err)
	}
	if len(resp.GetSvid().GetCertChain()) == 0 {
		return nil, none, errors.New("server response missing SVID chain")
	}
	bundle, err := bundlev1.NewBundleClient(conn).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return nil, none, fmt.Errorf("unable to get bundle: %w", err)
	}
	if len(bundle.GetX509Authorities()) == 0 {
		return nil, none, errors.New("server response missing X509 Authorities")
	}
	m := &minted{X509SVID: resp.GetSvid().GetCertChain(), PrivateKey: pkcs8, RootCAs: authorities(bundle)}
	return m, time.Unix(resp.GetSvid().GetExpiresAt(), 0), nil
}

// parts are the PEM texts of a minted SVID.
func (m *minted) parts() (svid, key, roots []byte, err error) {
	var chain, bundle bytes.Buffer
	err = errors.Join(printCertificates(&chain, m.X509SVID), printCertificates(&bundle, m.RootCAs))
	key = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: m.PrivateKey})
	return chain.Bytes(), key, bundle.Bytes(), err
}

func (m *minted) print(w io.Writer) error {
	svid, key, roots, err := m.parts()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "X509-SVID:\n%s\nPrivate key:\n%s\nRoot CAs:\n%s\n", svid, key, roots)
	return err
}

func (m *minted) write(w io.Writer, dir string) error {
	svid, key, roots, err := m.parts()
	if err != nil {
		return err
	}
	out := printer{w: w}
	for _, f := range []struct {
		what, short, name string
		data              []byte
		perm              os.FileMode
	}{
		{"X509-SVID", "SVID", "svid.pem", svid, 0o644},
		{"Private key", "key", "key.pem", key, 0o600},
		{"Root CAs", "bundle", "bundle.pem", roots, 0o644},
	} {
		path := filepath.Join(dir, f.name)
		if err := atomicfile.Write(path, f.data, f.perm); err != nil {
			return fmt.Errorf("unable to write %s: %w", f.short, err)
		}
		out.printf("%s written to %s\n", f.what, path)
	}
	return out.err
}

func jwtMint(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var spiffeID, file *string
	var ttl *time.Duration
	var audience *[]string
	cmd := verb(p, "mint", "Mint a JWT-SVID", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		switch {
		case *spiffeID == "":
			return errors.New("spiffeID must be specified")
		case len(*audience) == 0:
			return cli.Hint(errors.New("at least one audience must be specified"), "-audience names who the token is for")
		}
		id, err := parseID("spiffeID", *spiffeID)
		if err != nil {
			return err
		}
		seconds, err := wholeSeconds(*ttl)
		if err != nil {
			return err
		}
		resp, err := svidv1.NewSVIDClient(conn).MintJWTSVID(ctx, &svidv1.MintJWTSVIDRequest{Id: id, Audience: *audience, Ttl: seconds})
		if err != nil {
			return fmt.Errorf("unable to mint SVID: %w", err)
		}
		if resp.GetSvid().GetToken() == "" {
			return errors.New("server response missing token")
		}
		if err := warnCapped(cmd.ErrOrStderr(), "JWT-SVID", time.Unix(resp.GetSvid().GetExpiresAt(), 0), *ttl); err != nil {
			return err
		}
		if *file != "" {
			if err := atomicfile.Write(*file, []byte(resp.GetSvid().GetToken()), 0o600); err != nil {
				return fmt.Errorf("unable to write token: %w", err)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "JWT-SVID written to %s\n", *file)
			return err
		}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
			_, err := fmt.Fprintln(w, resp.GetSvid().GetToken())
			return err
		}, resp)
	})
	format = cli.OutputFlag(cmd.Flags())
	spiffeID = cmd.Flags().String("spiffeID", "", "the SPIFFE ID to issue")
	ttl = cmd.Flags().Duration("ttl", 0, "lifetime; 0: the server's default")
	audience = cmd.Flags().StringArray("audience", nil, "who the token is for; may be repeated")
	file = cmd.Flags().String("write", "", "write the token to this file")
	return cmd
}

// wholeSeconds rounds up.
func wholeSeconds(ttl time.Duration) (int32, error) {
	seconds, err := toInt32((ttl + time.Second - 1) / time.Second)
	if err != nil {
		return 0, fmt.Errorf("invalid value for TTL: %w", err)
	}
	return seconds, nil
}

// warnCapped says if an SVID lives shorter than asked for. Less than a second
// shorter is no news: SVIDs end at whole seconds.
func warnCapped(w io.Writer, what string, expires time.Time, ttl time.Duration) error {
	if time.Until(expires) >= ttl-time.Second {
		return nil
	}
	_, err := fmt.Fprintf(w, "%s lifetime was capped shorter than specified ttl; expires %q\n", what, expires.UTC().Format(time.RFC3339))
	return err
}
