package entryapi

import (
	"context"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// Limits of one call.
const (
	// MaxBatch is how many items one batch may have.
	MaxBatch = 10000
	// maxMessage is where a list is cut, in bytes: below the 4 MiB that gRPC
	// clients take by default.
	maxMessage = 3 << 20
	// maxAuthorized bounds GetAuthorizedEntries, which has no pages.
	maxAuthorized = 64 << 20
	// syncPage is how many entries, or revisions, SyncAuthorizedEntries sends
	// in one message, as SPIRE does.
	syncPage = 500
	// settleWait is how long the answer to a write waits for this server to
	// see it too.
	settleWait = time.Second
	// maxToken bounds a page token, which is an entry's ID.
	maxToken = 255
)

// Entitlements says which entries an agent may have; entitle.Graph does.
type Entitlements interface {
	// Authorized are the entries the agent may have at now, in any order.
	Authorized(agent spiffeid.ID, now time.Time) []*registry.Packed
	// Lookup is the entry, if the agent may have it at now.
	Lookup(agent spiffeid.ID, entryID string, now time.Time) (*registry.Packed, bool)
}

// Config of a Service. All but Audit is required.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Registry    *registry.Registry
	Index       *registry.Index
	// Fresh returns once Index, and what is made of it, is as new as the store
	// was at the call, and fails with store.ErrUnavailable when it does not
	// get there.
	Fresh        func(context.Context) error
	Entitlements Entitlements
	Logger       *slog.Logger
	// Audit receives every change asked for; nil: nothing is recorded.
	Audit *audit.Log
}

// Service is entry.v1. Who may call was decided before.
type Service struct {
	entryv1.UnimplementedEntryServer
	cfg Config
}

// New returns the service. It starts nothing.
func New(cfg Config) *Service { return &Service{cfg: cfg} }

// settle gives this server's own view of a write that is done a moment to show
// it, so that what the client does next finds it done everywhere. The write
// stands whatever comes of that, and reads wait for themselves.
func (s *Service) settle(ctx context.Context) {
	waiting, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	_ = s.cfg.Fresh(waiting)
}

// checkBatch bounds a batch.
func checkBatch(n int) error {
	if n > MaxBatch {
		return rpcerr.New(codes.InvalidArgument, "batch has %d items, at most %d are allowed: split it", n, MaxBatch)
	}
	return nil
}
