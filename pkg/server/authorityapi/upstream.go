package authorityapi

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"log/slog"
	"strings"

	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/audit"
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
	id, err := s.changeForeign(ctx, "x509upstream.taint", req.GetSubjectKeyId(), func(b *registry.Bundle, i int) error {
		if b.X509Authorities[i].Tainted {
			return rpcerr.New(codes.Internal, "failed to taint upstream authority: root CA is already tainted")
		}
		b.X509Authorities[i].Tainted = true
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
	id, err := s.changeForeign(ctx, "x509upstream.revoke", req.GetSubjectKeyId(), func(b *registry.Bundle, i int) error {
		if !b.X509Authorities[i].Tainted {
			return rpcerr.New(codes.Internal, "failed to revoke X.509 upstream authority: it is not possible to revoke an untainted root CA")
		}
		b.X509Authorities = append(b.X509Authorities[:i:i], b.X509Authorities[i+1:]...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &localauthorityv1.RevokeX509UpstreamAuthorityResponse{UpstreamAuthoritySubjectKeyId: id}, nil
}

// changeForeign changes the i-th X.509 authority of the bundle, which has the
// subject key ID and is not this server's own, between two audit records.
func (s *Service) changeForeign(ctx context.Context, action, keyID string, do func(b *registry.Bundle, i int) error) (string, error) {
	id := strings.ToLower(keyID)
	e := audit.Event{Action: action, Subject: id}
	if c, ok := policy.FromContext(ctx); ok {
		e.Caller, e.CallerKind = c.String(), c.Roles.String()
	}
	end := s.cfg.Audit.Begin(ctx, e)
	var refused error
	_, err := s.cfg.UpdateBundle(ctx, func(b *registry.Bundle) error {
		i := s.foreign(b, id)
		if i < 0 {
			refused = errNoUpstream
		} else {
			refused = do(b, i)
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

// foreign is the place in the bundle of the X.509 authority with the subject key
// ID, -1 if there is none or it is this server's own.
func (s *Service) foreign(b *registry.Bundle, id string) int {
	if id == "" {
		return -1
	}
	for _, v := range s.cfg.Authority.X509().State() {
		if v.ID == id {
			return -1
		}
	}
	for i, a := range b.X509Authorities {
		cert, err := x509.ParseCertificate(a.DER)
		if err == nil && hex.EncodeToString(cert.SubjectKeyId) == id {
			return i
		}
	}
	return -1
}
