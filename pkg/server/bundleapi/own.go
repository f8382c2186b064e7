package bundleapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"strings"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// AppendBundle adds authorities to the bundle of this server's trust domain.
// What the bundle has already stays as it is.
func (s *Service) AppendBundle(ctx context.Context, req *bundlev1.AppendBundleRequest) (*types.Bundle, error) {
	if len(req.GetX509Authorities())+len(req.GetJwtAuthorities())+len(req.GetWitAuthorities()) == 0 {
		return nil, rpcerr.New(codes.InvalidArgument, "no authorities to append")
	}
	add, err := s.own(&types.Bundle{
		X509Authorities: req.GetX509Authorities(), JwtAuthorities: req.GetJwtAuthorities(), WitAuthorities: req.GetWitAuthorities(),
	})
	if err != nil {
		return nil, conversion(err)
	}
	b, err := s.append(ctx, "bundle.append", add)
	if err != nil {
		return nil, rpcerr.Prefix(err, "failed to append bundle")
	}
	return show(b, req.GetOutputMask()), nil
}

// PublishJWTAuthority adds the key that a downstream server signs JWT-SVIDs
// with to the bundle, and returns all such keys.
func (s *Service) PublishJWTAuthority(ctx context.Context, req *bundlev1.PublishJWTAuthorityRequest) (*bundlev1.PublishJWTAuthorityResponse, error) {
	if req.GetJwtAuthority() == nil {
		return nil, rpcerr.New(codes.InvalidArgument, "missing JWT authority")
	}
	add, err := s.own(&types.Bundle{JwtAuthorities: []*types.JWTKey{req.GetJwtAuthority()}})
	if err != nil {
		return nil, rpcerr.Prefix(err, "invalid JWT authority")
	}
	b, err := s.append(ctx, "bundle.publish_jwt", add)
	if err != nil {
		return nil, rpcerr.Prefix(err, "failed to publish JWT key")
	}
	return &bundlev1.PublishJWTAuthorityResponse{JwtAuthorities: b.ToWire().GetJwtAuthorities()}, nil
}

// PublishWITAuthority is PublishJWTAuthority for WIT-SVIDs.
func (s *Service) PublishWITAuthority(ctx context.Context, req *bundlev1.PublishWITAuthorityRequest) (*bundlev1.PublishWITAuthorityResponse, error) {
	if req.GetWitAuthority() == nil {
		return nil, rpcerr.New(codes.InvalidArgument, "missing WIT authority")
	}
	add, err := s.own(&types.Bundle{WitAuthorities: []*types.WITKey{req.GetWitAuthority()}})
	if err != nil {
		return nil, rpcerr.Prefix(err, "invalid WIT authority")
	}
	b, err := s.append(ctx, "bundle.publish_wit", add)
	if err != nil {
		return nil, rpcerr.Prefix(err, "failed to publish WIT key")
	}
	return &bundlev1.PublishWITAuthorityResponse{WitAuthorities: b.ToWire().GetWitAuthorities()}, nil
}

// kinds are SPIRE's names of what is appended, by field.
var kinds = map[string]string{"x509_authorities": "X.509", "jwt_authorities": "JWT", "wit_authorities": "WIT"}

// conversion is SPIRE's answer to authorities that cannot be read.
func conversion(err error) error {
	bad, ok := errors.AsType[*registry.InvalidError](err)
	if !ok || kinds[bad.Field] == "" {
		return rpcerr.Prefix(err, "failed to convert authority")
	}
	return rpcerr.New(codes.InvalidArgument, "failed to convert %s authority: %s", kinds[bad.Field], bad.Rule)
}

// own reads authorities for this server's own bundle.
func (s *Service) own(w *types.Bundle) (*registry.Bundle, error) {
	w.TrustDomain = s.cfg.TrustDomain.Name()
	return registry.BundleFromWire(w)
}

func (s *Service) append(ctx context.Context, action string, add *registry.Bundle) (*registry.Bundle, error) {
	done := s.cfg.Audit.Begin(ctx, event(ctx, action, s.cfg.TrustDomain.Name(), authorities(add)...))
	b, err := s.cfg.Registry.AppendBundle(ctx, add)
	done(err)
	if errors.Is(err, registry.ErrNotFound) {
		return nil, errNotFound
	}
	if bad, ok := errors.AsType[*registry.InvalidError](err); ok {
		return nil, bad
	}
	if err != nil {
		return nil, err
	}
	s.settle(ctx)
	return b, nil
}

// Keys of the attributes that say which authorities a change is about.
const (
	keyX509Count = "x509_authorities"
	keyX509      = "x509_authority_sha256"
	keyJWTCount  = "jwt_authorities"
	keyJWT       = "jwt_authority_key_id"
	keyWITCount  = "wit_authorities"
	keyWIT       = "wit_authority_key_id"
)

// maxListed is how many authorities of a kind an audit record names.
const maxListed = 8

// authorities are the attributes that name what a bundle trusts: certificates by
// the SHA-256 of their DER form, keys by their IDs.
func authorities(b *registry.Bundle) []slog.Attr {
	var certs, jwt, wit []string
	for _, a := range b.X509Authorities[:min(len(b.X509Authorities), maxListed)] {
		sum := sha256.Sum256(a.DER)
		certs = append(certs, hex.EncodeToString(sum[:]))
	}
	for _, a := range b.JWTAuthorities[:min(len(b.JWTAuthorities), maxListed)] {
		jwt = append(jwt, a.KeyID)
	}
	for _, a := range b.WITAuthorities[:min(len(b.WITAuthorities), maxListed)] {
		wit = append(wit, a.KeyID)
	}
	var attrs []slog.Attr
	if certs != nil {
		attrs = append(attrs, slog.Int(keyX509Count, len(b.X509Authorities)), slog.String(keyX509, strings.Join(certs, ",")))
	}
	if jwt != nil {
		attrs = append(attrs, slog.Int(keyJWTCount, len(b.JWTAuthorities)), slog.String(keyJWT, strings.Join(jwt, ",")))
	}
	if wit != nil {
		attrs = append(attrs, slog.Int(keyWITCount, len(b.WITAuthorities)), slog.String(keyWIT, strings.Join(wit, ",")))
	}
	return attrs
}
