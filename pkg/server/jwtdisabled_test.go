package server

import (
	"testing"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// TestDisableJWTSVIDs: with the key set the server is well without a JWT
// authority, publishes none, and says so to who asks for tokens.
func TestDisableJWTSVIDs(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Server.DisableJWTSVIDs = true
	r := start(t, cfg)
	b, err := bundlev1.NewBundleClient(r.admin(t)).GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(b.JwtAuthorities) != 0 || len(b.X509Authorities) != 1 {
		t.Errorf("the bundle has %d JWT and %d X.509 authorities, want 0 and 1", len(b.JwtAuthorities), len(b.X509Authorities))
	}
	health, err := healthv1.NewHealthClient(r.admin(t)).Check(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil || health.Status != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", health, err)
	}
	err = calls["MintJWTSVID"](t.Context(), r.admin(t))
	if s := status.Convert(err); s.Code() != codes.Unimplemented || s.Message() != "JWT functionality is disabled" {
		t.Errorf("minting: %v", err)
	}
	if err := calls["GetX509AuthorityState"](t.Context(), r.admin(t)); err != nil {
		t.Error(err)
	}
}
