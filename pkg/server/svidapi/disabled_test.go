package svidapi_test

import (
	"context"
	"testing"

	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/server/apitest"
)

// TestJWTDisabled answers as SPIRE does with disable_jwt_svids; X509-SVIDs are
// signed as ever.
func TestJWTDisabled(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{DisableJWT: true})
	agent := w.NewAgent(t, "one")
	for name, call := range map[string]func(context.Context) error{
		"mint": func(ctx context.Context) error {
			_, err := svidv1.NewSVIDClient(w.Local(t)).MintJWTSVID(ctx, &svidv1.MintJWTSVIDRequest{})
			return err
		},
		"new": func(ctx context.Context) error {
			_, err := svidv1.NewSVIDClient(w.Dial(t, &agent.Cert)).NewJWTSVID(ctx, &svidv1.NewJWTSVIDRequest{})
			return err
		},
	} {
		s := status.Convert(call(t.Context()))
		if s.Code() != codes.Unimplemented || s.Message() != "JWT functionality is disabled" {
			t.Errorf("%s: %v", name, s)
		}
	}
}
