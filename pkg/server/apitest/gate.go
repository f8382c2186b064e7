package apitest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/svid"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// gate is the part of package server's gate that these tests need: whoever
// comes without TLS is the local admin, whoever shows a certificate is verified
// and, below /spire/agent/, authenticated.
type gate struct {
	world *World
	log   *slog.Logger
}

func (g *gate) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := func() (any, error) {
		caller, _, err := g.admit(ctx, info.FullMethod)
		if err != nil {
			return nil, err
		}
		return handler(policy.NewContext(ctx, caller), req)
	}()
	if err != nil {
		return nil, rpcerr.Call(ctx, g.log, err)
	}
	return resp, nil
}

func (g *gate) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	err := func() error {
		ctx := ss.Context()
		caller, cert, err := g.admit(ctx, info.FullMethod)
		if err != nil {
			return err
		}
		if caller.Is(policy.Agent) {
			held, release, err := g.world.Agents.Hold(ctx, caller.ID, cert)
			if err != nil {
				return err
			}
			defer release()
			ctx = held
		}
		return handler(srv, &guarded{ServerStream: ss, ctx: policy.NewContext(ctx, caller)})
	}()
	return rpcerr.Call(ss.Context(), g.log, err)
}

// guarded is a stream of a caller whose authority may end.
type guarded struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // It is what grpc.ServerStream.Context returns.
}

func (g *guarded) Context() context.Context { return g.ctx }

func (g *guarded) SendMsg(m any) error {
	if g.ctx.Err() != nil {
		return context.Cause(g.ctx)
	}
	return g.ServerStream.SendMsg(m)
}

func (g *gate) admit(ctx context.Context, method string) (policy.Caller, *x509.Certificate, error) {
	var caller policy.Caller
	p, _ := peer.FromContext(ctx)
	info, secure := p.AuthInfo.(credentials.TLSInfo)
	var cert *x509.Certificate
	switch {
	case !secure:
		caller.Roles = policy.Local
	case len(info.State.PeerCertificates) > 0 && policy.Policy{}.NeedsCaller(method):
		id, err := g.world.verify(info.State.PeerCertificates)
		if err != nil {
			return caller, nil, rpcerr.New(codes.Unauthenticated, "client certificate: %v", err)
		}
		cert = info.State.PeerCertificates[0]
		caller.ID, caller.Serial = id, cert.SerialNumber.String()
		if strings.HasPrefix(id.Path(), "/spire/agent/") {
			if err := g.world.Agents.Authenticate(ctx, id, cert); err != nil {
				return caller, nil, err
			}
			caller.Roles = policy.Agent
		}
	}
	return caller, cert, policy.Policy{}.Decide(method, caller)
}

func (w *World) verify(chain []*x509.Certificate) (spiffeid.ID, error) {
	b, ok := w.Index.Bundle(w.TrustDomain)
	if !ok {
		return spiffeid.ID{}, errors.New("no bundle")
	}
	bundle := x509bundle.New(w.TrustDomain)
	for _, a := range b.X509Authorities {
		cert, err := x509.ParseCertificate(a.DER)
		if err != nil {
			return spiffeid.ID{}, err
		}
		bundle.AddX509Authority(cert)
	}
	id, _, err := x509svid.Verify(chain, bundle)
	return id, err
}

// serverCredentials are those of /spire/server. Any client certificate is taken
// in the handshake; the gate verifies it.
func (w *World) serverCredentials(tb testing.TB) credentials.TransportCredentials {
	id, err := spiffeid.FromPath(w.TrustDomain, "/spire/server")
	must(tb, err)
	key := NewKey(tb)
	out, err := w.Authority.IssueX509(tb.Context(), time.Now(), svid.X509Request{Kind: svid.Server, ID: id, PublicKey: key.Public()})
	must(tb, err)
	return credentials.NewTLS(&tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequestClientCert,
		Certificates:           []tls.Certificate{{Certificate: out.Chain, PrivateKey: key}},
		SessionTicketsDisabled: true,
	})
}
