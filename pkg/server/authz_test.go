package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/telemetry"
)

// calls are one harmless call for each kind of rule in the policy; each says
// whether it got past the door.
var calls = map[string]func(ctx context.Context, c *grpc.ClientConn) error{
	"GetBundle": func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := bundlev1.NewBundleClient(c).GetBundle(ctx, &bundlev1.GetBundleRequest{})
		return err
	},
	"ListEntries": func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := entryv1.NewEntryClient(c).ListEntries(ctx, &entryv1.ListEntriesRequest{})
		return err
	},
	"GetAuthorizedEntries": func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := entryv1.NewEntryClient(c).GetAuthorizedEntries(ctx, &entryv1.GetAuthorizedEntriesRequest{})
		return err
	},
	"SyncAuthorizedEntries": func(ctx context.Context, c *grpc.ClientConn) error {
		s, err := entryv1.NewEntryClient(c).SyncAuthorizedEntries(ctx)
		if err != nil {
			return err
		}
		// A refusal comes with Recv, whatever becomes of Send.
		_ = s.Send(&entryv1.SyncAuthorizedEntriesRequest{})
		_, err = s.Recv()
		return err
	},
	"MintJWTSVID": func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := svidv1.NewSVIDClient(c).MintJWTSVID(ctx, &svidv1.MintJWTSVIDRequest{Id: wireID("/x"), Audience: []string{"a"}})
		return err
	},
	"GetX509AuthorityState": func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := localauthorityv1.NewLocalAuthorityClient(c).GetX509AuthorityState(ctx, &localauthorityv1.GetX509AuthorityStateRequest{})
		return err
	},
	"GetInfo": func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := debugv1.NewDebugClient(c).GetInfo(ctx, &debugv1.GetInfoRequest{})
		return err
	},
	"GetLogger": func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := loggerv1.NewLoggerClient(c).GetLogger(ctx, &loggerv1.GetLoggerRequest{})
		return err
	},
	"health": func(ctx context.Context, c *grpc.ClientConn) error {
		_, err := healthv1.NewHealthClient(c).Check(ctx, &healthv1.HealthCheckRequest{})
		return err
	},
}

func TestWhoMayCallWhat(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Server.AdminIDs = []string{"spiffe://example.org/configured-admin"}
	log, err := telemetry.NewLog(telemetry.LogConfig{Level: "debug", Output: new(logBuffer)})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Log = log
	r := start(t, cfg)
	agent := r.attest(t)
	r.register(t, &types.Entry{SpiffeId: wireID("/admin"), ParentId: wireID("/spire/server"), Admin: true})
	r.register(t, &types.Entry{SpiffeId: wireID("/plain"), ParentId: wireID("/spire/server")})

	all := []string{"GetBundle", "ListEntries", "GetAuthorizedEntries", "SyncAuthorizedEntries", "MintJWTSVID", "GetX509AuthorityState", "GetInfo", "GetLogger", "health"}
	for _, tc := range []struct {
		name    string
		conn    *grpc.ClientConn
		allowed []string
	}{
		{"local", r.admin(t), []string{"GetBundle", "ListEntries", "MintJWTSVID", "GetX509AuthorityState", "GetInfo", "GetLogger", "health"}},
		{"agent", agent.conn, []string{"GetBundle", "GetAuthorizedEntries", "SyncAuthorizedEntries"}},
		{"admin entry", r.dial(t, r.mint(t, "/admin")), []string{"GetBundle", "ListEntries", "MintJWTSVID", "GetX509AuthorityState"}},
		{"admin_ids", r.dial(t, r.mint(t, "/configured-admin")), []string{"GetBundle", "ListEntries", "MintJWTSVID", "GetX509AuthorityState"}},
		{"workload", r.dial(t, r.mint(t, "/plain")), []string{"GetBundle"}},
		{"unregistered workload", r.dial(t, r.mint(t, "/nobody")), []string{"GetBundle"}},
		{"no certificate", r.dial(t, nil), []string{"GetBundle"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			allowed := make(map[string]bool)
			for _, name := range tc.allowed {
				allowed[name] = true
			}
			for _, name := range all {
				err := calls[name](t.Context(), tc.conn)
				if want := codes.PermissionDenied; !allowed[name] && status.Code(err) != want {
					t.Errorf("%s: %v, want %v", name, err, want)
				}
				if allowed[name] && err != nil {
					t.Errorf("%s: %v, want no error", name, err)
				}
			}
		})
	}
}

// TestS24_CertificateMustVerify shows certificates with the right names that
// this trust domain did not issue.
func TestS24_CertificateMustVerify(t *testing.T) {
	t.Parallel()
	r, other := start(t, testConfig(t)), start(t, testConfig(t))
	agent := r.attest(t)
	stolen := agent.cert
	stolen.PrivateKey = newKey(t)
	for name, cert := range map[string]*tls.Certificate{
		"self-signed, an agent's name":       selfSigned(t, agent.id),
		"of another authority, same name":    other.mint(t, "/admin"),
		"genuine, without its key":           &stolen,
		"self-signed below the real CA":      {Certificate: append(selfSigned(t, agent.id).Certificate, r.bundle(t).X509Authorities[0].Asn1), PrivateKey: newKey(t)},
		"the authority's own, without a key": {Certificate: [][]byte{r.bundle(t).X509Authorities[0].Asn1}, PrivateKey: newKey(t)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Not even what anyone may call: who lies is not served.
			for _, call := range []string{"GetBundle", "GetAuthorizedEntries", "ListEntries"} {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				err := calls[call](ctx, r.dial(t, cert))
				cancel()
				if c := status.Code(err); c != codes.Unavailable && c != codes.Unauthenticated {
					t.Errorf("%s: %v, want a refused handshake", call, err)
				}
			}
		})
	}
}

// TestS25_AuthorisationIsPerCallAndMessage takes rights away from callers whose
// connections, and streams, stay open.
func TestS25_AuthorisationIsPerCallAndMessage(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		end  func(ctx context.Context, c agentv1.AgentClient, id *types.SPIFFEID) error
		want types.PermissionDeniedDetails_Reason
	}{
		"ban": {func(ctx context.Context, c agentv1.AgentClient, id *types.SPIFFEID) error {
			_, err := c.BanAgent(ctx, &agentv1.BanAgentRequest{Id: id})
			return err
		}, types.PermissionDeniedDetails_AGENT_BANNED},
		"evict": {func(ctx context.Context, c agentv1.AgentClient, id *types.SPIFFEID) error {
			_, err := c.DeleteAgent(ctx, &agentv1.DeleteAgentRequest{Id: id})
			return err
		}, types.PermissionDeniedDetails_AGENT_NOT_ATTESTED},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, testConfig(t))
			agent := r.attest(t)
			// More than one page, so that the stream goes on after its first
			// answer.
			admin := entryv1.NewEntryClient(r.admin(t))
			var batch []*types.Entry
			for i := range 501 {
				batch = append(batch, &types.Entry{
					SpiffeId: wireID(fmt.Sprintf("/w/%d", i)), ParentId: wireID(agent.id.Path()),
					Selectors: []*types.Selector{{Type: "unix", Value: "uid:1"}},
				})
			}
			if _, err := admin.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: batch}); err != nil {
				t.Fatal(err)
			}
			stream, err := entryv1.NewEntryClient(agent.conn).SyncAuthorizedEntries(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Send(&entryv1.SyncAuthorizedEntriesRequest{}); err != nil {
				t.Fatal(err)
			}
			first, err := stream.Recv()
			if err != nil || len(first.EntryRevisions) == 0 {
				t.Fatalf("first answer: %v, %v", first, err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}

			idle, err := entryv1.NewEntryClient(agent.conn).SyncAuthorizedEntries(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := tc.end(t.Context(), agentv1.NewAgentClient(r.admin(t)), wireID(agent.id.Path())); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			if _, err := idle.Recv(); reason(err) != tc.want {
				t.Errorf("stream that nobody sends on: %v, want %v", err, tc.want)
			}
			if took := time.Since(begin); took > time.Second {
				t.Errorf("that took %v", took)
			}
			_ = stream.Send(&entryv1.SyncAuthorizedEntriesRequest{Ids: []string{first.EntryRevisions[0].Id}})
			resp, err := stream.Recv()
			if reason(err) != tc.want {
				t.Errorf("open stream: %v, %v, want %v", resp, err, tc.want)
			}
			_, err = entryv1.NewEntryClient(agent.conn).GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{})
			if reason(err) != tc.want {
				t.Errorf("open connection: %v, want %v", err, tc.want)
			}
			// What anyone may call stays.
			if err := calls["GetBundle"](t.Context(), agent.conn); err != nil {
				t.Errorf("GetBundle: %v", err)
			}
		})
	}
	t.Run("admin entry deleted", func(t *testing.T) {
		t.Parallel()
		r := start(t, testConfig(t))
		id := r.register(t, &types.Entry{SpiffeId: wireID("/admin"), ParentId: wireID("/spire/server"), Admin: true})
		conn := r.dial(t, r.mint(t, "/admin"))
		if err := calls["ListEntries"](t.Context(), conn); err != nil {
			t.Fatal(err)
		}
		if _, err := entryv1.NewEntryClient(r.admin(t)).BatchDeleteEntry(t.Context(), &entryv1.BatchDeleteEntryRequest{Ids: []string{id}}); err != nil {
			t.Fatal(err)
		}
		if err := calls["ListEntries"](t.Context(), conn); status.Code(err) != codes.PermissionDenied {
			t.Errorf("after the entry is gone: %v, want PermissionDenied", err)
		}
	})
}

// reason is the detail that agents act on.
func reason(err error) types.PermissionDeniedDetails_Reason {
	if status.Code(err) != codes.PermissionDenied {
		return types.PermissionDeniedDetails_UNKNOWN
	}
	for _, d := range status.Convert(err).Details() {
		if p, ok := d.(*types.PermissionDeniedDetails); ok {
			return p.Reason
		}
	}
	return types.PermissionDeniedDetails_UNKNOWN
}
