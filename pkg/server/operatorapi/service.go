package operatorapi

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	operatorv1 "github.com/credence-id/credence/proto/operator/v1"
)

// Config of a Service. All fields are required but Audit.
type Config struct {
	Store store.Store
	// Index has the tables that can be counted without reading the store.
	Index *registry.Index
	// Feed has the agents that follow this server.
	Feed Feed
	// Logger is told of what was done, and of what a refusal hides.
	Logger *slog.Logger
	Audit  *audit.Log
}

// Feed is what of feedapi.Hub is needed here; its documentation says what they
// do.
type Feed interface {
	Drain(ctx context.Context, over time.Duration, progress func(left int)) error
	Undrain()
	// Streams is how many agents follow this server.
	Streams() int
}

// Service is credence.operator.v1.Operator. Who may call was decided before. Its
// methods may be called concurrently.
type Service struct {
	operatorv1.UnsafeOperatorServer
	cfg Config

	mu   sync.Mutex
	last *backup // guarded by mu; nil: none yet
}

// backup is one that was sent in full.
type backup struct {
	at       time.Time
	revision store.Revision
}

// New returns the service. It starts nothing.
func New(cfg Config) *Service { return &Service{cfg: cfg} }

// begin records an intent of the caller's; what it returns records the outcome.
func (s *Service) begin(ctx context.Context, action string) func(error, ...slog.Attr) {
	caller, _ := policy.FromContext(ctx)
	return s.cfg.Audit.Begin(ctx, audit.Event{Action: action, Caller: caller.String(), CallerKind: caller.Roles.String()})
}

// StoreInfo says which store the server works on, and what is in it: with sizes
// by reading all of it, else what costs next to nothing.
func (s *Service) StoreInfo(ctx context.Context, req *operatorv1.StoreInfoRequest) (*operatorv1.StoreInfoResponse, error) {
	head, err := s.cfg.Store.Head(ctx)
	if err != nil {
		return nil, err
	}
	tables, err := s.tables(ctx, req.GetSizes())
	if err != nil {
		return nil, err
	}
	out := Describe(s.cfg.Store.Info(), head, tables)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil {
		out.LastBackup, out.LastBackupRevision = timestamppb.New(s.last.at), uint64(s.last.revision)
	}
	return out, nil
}

func (s *Service) tables(ctx context.Context, sizes bool) ([]registry.Table, error) {
	if sizes {
		return registry.CountTables(ctx, s.cfg.Store)
	}
	known := []registry.Table{
		{Name: registry.EntriesTable, Count: uint64(s.cfg.Index.CountEntries(registry.EntryFilter{}, time.Now()))},
		{Name: registry.AgentsTable, Count: uint64(s.cfg.Index.CountAgents(registry.AgentFilter{}))},
		{Name: registry.BundlesTable, Count: uint64(len(s.cfg.Index.Bundles()))},
	}
	small, err := registry.CountTables(ctx, s.cfg.Store, registry.TokensTable, registry.JournalsTable)
	for i := range small {
		small[i].Bytes = 0
	}
	return append(known, small...), err
}

// Describe is StoreInfo's answer about a store that may belong to nobody.
func Describe(info store.Info, head store.Revision, tables []registry.Table) *operatorv1.StoreInfoResponse {
	out := &operatorv1.StoreInfoResponse{
		Engine: info.Engine, StoreId: info.ID, Format: int32(info.Format), Revision: uint64(head),
	}
	for _, t := range tables {
		out.Tables = append(out.Tables, &operatorv1.Table{Name: t.Name, Count: t.Count, Bytes: t.Bytes})
	}
	return out
}
