package authorityapi

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"log/slog"
	"slices"
	"strings"

	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/ca"
	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/rpcerr"
	"github.com/credence-id/credence/pkg/telemetry"
)

// TaintX509UpstreamAuthority marks an X.509 authority of the bundle that is not
// this server's own, such as that of a server it was imported from: agents
// replace at once what it signed. It is FailedPrecondition if there is none with
// this subject key ID.
func (s *Service) TaintX509UpstreamAuthority(ctx context.Context, req *localauthorityv1.TaintX509UpstreamAuthorityRequest) (*localauthorityv1.TaintX509UpstreamAuthorityResponse, error) {
	id, err := s.changeForeign(ctx, "x509upstream.taint", req.GetSubjectKeyId(), func(b *registry.Bundle, of keyHolder) error {
		fresh := false
		for i, a := range b.X509Authorities {
			if of(a) {
				fresh = fresh || !a.Tainted
				b.X509Authorities[i].Tainted = true
			}
		}
		if !fresh {
			return rpcerr.New(codes.Internal, "failed to taint upstream authority: root CA is already tainted")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.TaintX509UpstreamAuthorityResponse{UpstreamAuthoritySubjectKeyId: id}, nil
}

// RevokeX509UpstreamAuthority removes such an authority from the bundle once it
// is tainted: what it signed is worth nothing.
func (s *Service) RevokeX509UpstreamAuthority(ctx context.Context, req *localauthorityv1.RevokeX509UpstreamAuthorityRequest) (*localauthorityv1.RevokeX509UpstreamAuthorityResponse, error) {
	id, err := s.changeForeign(ctx, "x509upstream.revoke", req.GetSubjectKeyId(), func(b *registry.Bundle, of keyHolder) error {
		if slices.ContainsFunc(b.X509Authorities, func(a registry.X509Authority) bool { return of(a) && !a.Tainted }) {
			return rpcerr.New(codes.Internal, "failed to revoke X.509 upstream authority: it is not possible to revoke an untainted root CA")
		}
		b.X509Authorities = slices.DeleteFunc(b.X509Authorities, of)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.RevokeX509UpstreamAuthorityResponse{UpstreamAuthoritySubjectKeyId: id}, nil
}

// keyHolder says whether an X.509 authority has a certain key. Several
// certificates can, such as a root that was renewed: what is said of the key is
// said of all of them.
type keyHolder = func(registry.X509Authority) bool

// changeForeign changes the X.509 authorities of the bundle that have the
// subject key ID, which is not this server's own, between two audit records.
func (s *Service) changeForeign(ctx context.Context, action, keyID string, do func(*registry.Bundle, keyHolder) error) (string, error) {
	id := strings.ToLower(keyID)
	e := audit.Event{Action: action, Subject: id}
	if c, ok := policy.FromContext(ctx); ok {
		e.Caller, e.CallerKind = c.String(), c.Roles.String()
	}
	end := s.cfg.Audit.Begin(ctx, e)
	var refused error
	_, err := s.cfg.UpdateBundle(ctx, func(b *registry.Bundle) error {
		refused = errNoUpstream
		of := s.foreign(id)
		if slices.ContainsFunc(b.X509Authorities, of) {
			refused = do(b, of)
		}
		return refused
	})
	if refused != nil {
		err = refused
	}
	if err != nil {
		end(err)
		return "", err
	}
	end(nil, slog.String(telemetry.AuthorityID, id))
	waiting, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	_ = s.cfg.Fresh(waiting) // The change stands whatever comes of that.
	return id, nil
}

// foreign finds the X.509 authorities with the subject key ID, none if that is
// this server's own.
func (s *Service) foreign(id string) keyHolder {
	own := slices.ContainsFunc(s.cfg.Authority.X509().State(), func(v ca.View) bool { return v.ID == id })
	return func(a registry.X509Authority) bool {
		if id == "" || own {
			return false
		}
		cert, err := x509.ParseCertificate(a.DER)
		return err == nil && hex.EncodeToString(cert.SubjectKeyId) == id
	}
}
