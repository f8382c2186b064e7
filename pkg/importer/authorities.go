package importer

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
)

// authorities adds to the trust domain's bundle of each server the authorities
// that only the other one has, and reads both back.
func (r *run) authorities(ctx context.Context) error {
	r.Begin("exchanging authorities", 0)
	out := &Appended{}
	r.report.Authorities = out
	there, here, err := r.ownBundles(ctx)
	if err != nil {
		return err
	}
	toHere, toThere := r.missing(there, here, sides[0]), r.missing(here, there, sides[1])
	out.X509Here, out.JWTHere = len(toHere.GetX509Authorities()), len(toHere.GetJwtAuthorities())
	out.X509There, out.JWTThere = len(toThere.GetX509Authorities()), len(toThere.GetJwtAuthorities())
	if r.DryRun {
		return nil
	}
	// First there: agents of the other server learn by polling, ours at once.
	if err := r.add(ctx, r.From, sides[0], toThere); err != nil {
		return err
	}
	if err := r.add(ctx, r.To, sides[1], toHere); err != nil {
		return err
	}
	if there, here, err = r.ownBundles(ctx); err != nil {
		return err
	}
	out.Verified = size(r.missing(there, here, "")) == 0 && size(r.missing(here, there, "")) == 0
	if !out.Verified {
		r.problem("bundle", r.report.TrustDomain, "the servers' bundles lack authorities of each other after they were added; one rotated meanwhile: run this again")
	}
	return nil
}

func (r *run) ownBundles(ctx context.Context) (there, here *types.Bundle, err error) {
	var got [2]*types.Bundle
	for i, conn := range []grpc.ClientConnInterface{r.From, r.To} {
		if got[i], err = bundlev1.NewBundleClient(conn).GetBundle(ctx, &bundlev1.GetBundleRequest{}); err != nil {
			return nil, nil, fmt.Errorf("reading the bundle of %s: %w", sides[i], err)
		}
	}
	return got[0], got[1], nil
}

func size(req *bundlev1.AppendBundleRequest) int {
	return len(req.GetX509Authorities()) + len(req.GetJwtAuthorities())
}

func (r *run) add(ctx context.Context, conn grpc.ClientConnInterface, side string, req *bundlev1.AppendBundleRequest) error {
	if size(req) == 0 {
		return nil
	}
	if _, err := bundlev1.NewBundleClient(conn).AppendBundle(ctx, req); err != nil {
		return fmt.Errorf("adding authorities to the bundle of %s: %w", side, err)
	}
	r.report.Changes += size(req)
	return nil
}

// missing are the authorities of one bundle that another lacks and that may be
// trusted. If owner is not empty, those that may not are warned about.
func (r *run) missing(from, in *types.Bundle, owner string) *bundlev1.AppendBundleRequest {
	req := &bundlev1.AppendBundleRequest{}
	for _, a := range from.GetX509Authorities() {
		if hasX509(in, a) || r.expiredX509(a) {
			continue
		}
		if a.GetTainted() {
			r.warnTainted(owner, "X.509")
			continue
		}
		req.X509Authorities = append(req.X509Authorities, a)
	}
	now := r.Now().Unix()
	for _, k := range from.GetJwtAuthorities() {
		if hasJWT(in, k) || k.GetExpiresAt() != 0 && k.GetExpiresAt() <= now {
			continue
		}
		if k.GetTainted() {
			r.warnTainted(owner, "JWT")
			continue
		}
		req.JwtAuthorities = append(req.JwtAuthorities, k)
	}
	return req
}

func (r *run) warnTainted(owner, what string) {
	if owner != "" {
		r.Warn(fmt.Sprintf("a tainted %s authority of %s was not added to the other's bundle: what it signed will not verify there", what, owner))
	}
}

func hasX509(b *types.Bundle, a *types.X509Certificate) bool {
	for _, have := range b.GetX509Authorities() {
		if bytes.Equal(have.GetAsn1(), a.GetAsn1()) {
			return true
		}
	}
	return false
}

func hasJWT(b *types.Bundle, k *types.JWTKey) bool {
	for _, have := range b.GetJwtAuthorities() {
		if have.GetKeyId() == k.GetKeyId() && bytes.Equal(have.GetPublicKey(), k.GetPublicKey()) {
			return true
		}
	}
	return false
}

// expiredX509 says whether nothing that an authority signed can be valid.
func (r *run) expiredX509(a *types.X509Certificate) bool {
	cert, err := x509.ParseCertificate(a.GetAsn1())
	return err == nil && r.Now().After(cert.NotAfter)
}
