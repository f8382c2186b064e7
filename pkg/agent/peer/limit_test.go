package peer_test

import (
	"context"
	"testing"

	"github.com/credence-id/credence/pkg/agent/peer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// bare is a stream with a context.
type bare struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // It is what grpc.ServerStream.Context returns.
}

func (b bare) Context() context.Context { return b.ctx }

// Callers that nobody knows share what one user gets; what has ended counts no
// more, whether it was a stream or not.
func TestCallsAreCountedUntilTheyEnd(t *testing.T) {
	t.Parallel()
	refused := 0
	c := peer.NewCredentials(peer.Config{Limits: peer.Limits{Calls: 2}, Refused: func(reason string) {
		if reason == peer.RefusedCall {
			refused++
		}
	}})
	unary := func(inside func()) error {
		_, err := c.Unary(t.Context(), &emptypb.Empty{}, nil, func(context.Context, any) (any, error) {
			inside()
			return nil, nil
		})
		return err
	}
	stream := func(inside func()) error {
		return c.Stream(nil, bare{ctx: t.Context()}, nil, func(any, grpc.ServerStream) error {
			inside()
			return nil
		})
	}
	for range 10 {
		for _, outer := range []func(func()) error{unary, stream} {
			if err := outer(func() {
				for _, inner := range []func(func()) error{unary, stream} {
					if err := inner(func() { t.Error("one too many") }); status.Code(err) != codes.ResourceExhausted {
						t.Errorf("one too many: %v", err)
					}
				}
			}); err != nil {
				t.Error(err)
			}
		}
	}
	if refused != 40 {
		t.Errorf("%d refusals were told, want 40", refused)
	}
}

// What counting adds to a call.
func BenchmarkCount(b *testing.B) {
	c := peer.NewCredentials(peer.Config{Limits: peer.Limits{Calls: 2}})
	handler := func(context.Context, any) (any, error) { return nil, nil }
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Unary(b.Context(), nil, nil, handler); err != nil {
			b.Fatal(err)
		}
	}
}
