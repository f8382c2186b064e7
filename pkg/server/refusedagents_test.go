package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/credence-id/credence/pkg/registry"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
)

// agentCalls are all that agents may call; an empty message is good for each.
var agentCalls = []string{
	agentv1.Agent_RenewAgent_FullMethodName, agentv1.Agent_PostStatus_FullMethodName,
	entryv1.Entry_GetAuthorizedEntries_FullMethodName, svidv1.SVID_BatchNewX509SVID_FullMethodName,
	svidv1.SVID_NewJWTSVID_FullMethodName, svidv1.SVID_BatchNewWITSVID_FullMethodName,
	bundlev1.Bundle_GetFederatedBundle_FullMethodName,
}

var agentStreams = []string{entryv1.Entry_SyncAuthorizedEntries_FullMethodName, feedv1.Feed_Watch_FullMethodName}

// callAll calls everything and returns what each call ended with.
func callAll(ctx context.Context, conn *grpc.ClientConn) map[string]error {
	out := make(map[string]error)
	for _, method := range agentCalls {
		out[method] = conn.Invoke(ctx, method, new(emptypb.Empty), new(emptypb.Empty))
	}
	for _, method := range agentStreams {
		out[method] = callStream(ctx, conn, method)
	}
	return out
}

func callStream(ctx context.Context, conn *grpc.ClientConn, method string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	_ = stream.SendMsg(new(emptypb.Empty)) // a refusal comes with RecvMsg
	return stream.RecvMsg(new(emptypb.Empty))
}

// inTime calls do with longer and longer lifetimes until it ends well, and returns
// when what it made ends. It may fail because that has ended already: a busy
// machine can take seconds over a connection.
func inTime(t *testing.T, do func(ttl time.Duration) (end time.Time, err error)) time.Time {
	t.Helper()
	for ttl := 2 * time.Second; ; ttl *= 2 {
		end, err := do(ttl)
		switch {
		case err == nil:
			return end
		case time.Now().Before(end), ttl > patience:
			t.Fatal(err)
		}
	}
}

// TestRefusedAgentsAreToldWhy: an agent that may not act gets the reason, by
// which it attests again or ends, from every call it may make.
func TestRefusedAgentsAreToldWhy(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		end  func(t *testing.T, r *running, a *testAgent)
		want types.PermissionDeniedDetails_Reason
	}{
		"evicted": {func(t *testing.T, r *running, a *testAgent) {
			if _, err := agentv1.NewAgentClient(r.admin(t)).DeleteAgent(t.Context(), &agentv1.DeleteAgentRequest{Id: wireID(a.id.Path())}); err != nil {
				t.Fatal(err)
			}
		}, types.PermissionDeniedDetails_AGENT_NOT_ATTESTED},
		"banned": {func(t *testing.T, r *running, a *testAgent) {
			if _, err := agentv1.NewAgentClient(r.admin(t)).BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: wireID(a.id.Path())}); err != nil {
				t.Fatal(err)
			}
		}, types.PermissionDeniedDetails_AGENT_BANNED},
		"renewed since": {func(t *testing.T, r *running, a *testAgent) {
			key := newKey(t)
			resp, err := agentv1.NewAgentClient(a.conn).RenewAgent(t.Context(), &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: csr(t, key)}})
			if err != nil {
				t.Fatal(err)
			}
			next := r.dial(t, &tls.Certificate{Certificate: resp.GetSvid().GetCertChain(), PrivateKey: key})
			if _, err := agentv1.NewAgentClient(next).PostStatus(t.Context(), &agentv1.PostStatusRequest{}); err != nil {
				t.Fatal(err)
			}
		}, types.PermissionDeniedDetails_AGENT_NOT_ACTIVE},
		"expired": {func(t *testing.T, _ *running, a *testAgent) {
			time.Sleep(time.Until(endOf(t, a)) + 1100*time.Millisecond)
		}, types.PermissionDeniedDetails_AGENT_EXPIRED},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var r *running
			var a *testAgent
			inTime(t, func(ttl time.Duration) (time.Time, error) {
				cfg := testConfig(t)
				if tc.want == types.PermissionDeniedDetails_AGENT_EXPIRED {
					cfg.Server.AgentTTL = ttl
				}
				r = start(t, cfg)
				a = r.attest(t)
				// The connection is from when all was well.
				_, err := agentv1.NewAgentClient(a.conn).PostStatus(t.Context(), &agentv1.PostStatusRequest{})
				return endOf(t, a), err
			})
			tc.end(t, r, a)
			for method, err := range callAll(t.Context(), a.conn) {
				if reason(err) != tc.want {
					t.Errorf("%s: %v, want %v", method, err, tc.want)
				}
			}
		})
	}
}

func endOf(t *testing.T, a *testAgent) time.Time {
	t.Helper()
	leaf, err := x509.ParseCertificate(a.cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf.NotAfter
}

// TestReattestableAgentsMustNotRenew: one that can attest again is told to.
func TestReattestableAgentsMustNotRenew(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	a := r.attest(t)
	if _, err := r.inside.registry.UpdateAgent(t.Context(), a.id, func(a *registry.Agent) error {
		a.CanReattest = true
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	_, err := agentv1.NewAgentClient(a.conn).RenewAgent(t.Context(), &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: csr(t, newKey(t))}})
	if want := types.PermissionDeniedDetails_AGENT_MUST_REATTEST; reason(err) != want {
		t.Errorf("%v, want %v", err, want)
	}
}

// TestExpiredWorkloadsAreNoAgents: a workload whose SVID has ended on an open
// connection is not told to attest.
func TestExpiredWorkloadsAreNoAgents(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	var conn *grpc.ClientConn
	end := inTime(t, func(ttl time.Duration) (time.Time, error) {
		key := newKey(t)
		resp, err := svidv1.NewSVIDClient(r.admin(t)).MintX509SVID(t.Context(), &svidv1.MintX509SVIDRequest{
			Csr: csr(t, key, "spiffe://"+testDomain+"/brief"), Ttl: int32(ttl.Seconds()),
		})
		if err != nil {
			t.Fatal(err)
		}
		conn = r.dial(t, &tls.Certificate{Certificate: resp.GetSvid().GetCertChain(), PrivateKey: key})
		return time.Unix(resp.GetSvid().GetExpiresAt(), 0), calls["GetBundle"](t.Context(), conn)
	})
	time.Sleep(time.Until(end) + 1100*time.Millisecond)
	for method, err := range callAll(t.Context(), conn) {
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: %v, want Unauthenticated", method, err)
		}
	}
}
