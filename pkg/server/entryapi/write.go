package entryapi

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/rpcerr"
	"github.com/credence-id/credence/pkg/telemetry"
)

var (
	errSimilar   = rpcerr.New(codes.AlreadyExists, "similar entry already exists")
	errSameID    = rpcerr.New(codes.AlreadyExists, "failed to create entry: another entry has this ID; leave the ID out, or update that entry")
	errMissingID = rpcerr.New(codes.InvalidArgument, "missing entry ID")
)

// KeepCreatedAt is the name in a call's metadata, with any value, that has
// BatchCreateEntry take created_at from the entries, as an import needs it: of
// entries with one hint, a workload gets the oldest.
const KeepCreatedAt = "credence-keep-created-at"

// BatchCreateEntry makes entries. A similar entry, or one with the same ID, is
// AlreadyExists with that entry. When an entry was created is for the server to
// say, but of one that is imported: see [KeepCreatedAt].
func (s *Service) BatchCreateEntry(ctx context.Context, req *entryv1.BatchCreateEntryRequest) (*entryv1.BatchCreateEntryResponse, error) {
	if err := checkBatch(len(req.GetEntries())); err != nil {
		return nil, err
	}
	record := s.recorder(ctx, "entry.create", len(req.GetEntries()))
	results := make([]*entryv1.BatchCreateEntryResponse_Result, len(req.GetEntries()))
	entries := make([]*registry.Entry, 0, len(results))
	places := make([]int, 0, len(results)) // of entries in results
	keep := len(metadata.ValueFromIncomingContext(ctx, KeepCreatedAt)) > 0
	for i, m := range req.GetEntries() {
		e, err := registry.EntryFromWire(s.cfg.TrustDomain, m)
		record.begin(ctx, i, m)
		if err != nil {
			err = rpcerr.Prefix(err, "failed to convert entry")
			results[i] = &entryv1.BatchCreateEntryResponse_Result{Status: s.item(ctx, err)}
			record.end(i, err)
			continue
		}
		if !keep {
			e.CreatedAt = time.Time{}
		}
		entries, places = append(entries, e), append(places, i)
	}
	created := s.cfg.Registry.CreateEntries(ctx, entries)
	s.settle(ctx)
	for j, c := range created {
		i, err := places[j], createErr(entries[j], c)
		results[i] = &entryv1.BatchCreateEntryResponse_Result{Status: s.item(ctx, err)}
		if c.Entry != nil {
			results[i].Entry = show(c.Entry, req.GetOutputMask())
		}
		record.end(i, err, slog.String(telemetry.EntryID, results[i].Entry.GetId()))
	}
	return &entryv1.BatchCreateEntryResponse{Results: results}, nil
}

// createErr is what became of e.
func createErr(e *registry.Entry, c registry.EntryResult) error {
	switch {
	case !errors.Is(c.Err, registry.ErrExists):
		return rpcerr.Prefix(c.Err, "failed to create entry")
	case c.Entry != nil && !similar(e, c.Entry):
		return errSameID
	}
	return errSimilar
}

// similar is what SPIRE calls entries that cannot be side by side.
func similar(a, b *registry.Entry) bool {
	return a.SPIFFEID == b.SPIFFEID && a.ParentID == b.ParentID && slices.Equal(a.Selectors, b.Selectors)
}

// BatchUpdateEntry sets the fields of the input mask (nil: all).
func (s *Service) BatchUpdateEntry(ctx context.Context, req *entryv1.BatchUpdateEntryRequest) (*entryv1.BatchUpdateEntryResponse, error) {
	if err := checkBatch(len(req.GetEntries())); err != nil {
		return nil, err
	}
	record := s.recorder(ctx, "entry.update", len(req.GetEntries()))
	results := make([]*entryv1.BatchUpdateEntryResponse_Result, len(req.GetEntries()))
	updates := make([]registry.EntryUpdate, 0, len(results))
	places := make([]int, 0, len(results))
	for i, m := range req.GetEntries() {
		record.begin(ctx, i, m)
		if err := checkUpdate(m); err != nil {
			results[i] = &entryv1.BatchUpdateEntryResponse_Result{Status: s.item(ctx, err)}
			record.end(i, err)
			continue
		}
		updates = append(updates, registry.EntryUpdate{ID: m.GetId(), Change: s.change(m, req.GetInputMask())})
		places = append(places, i)
	}
	updated := s.cfg.Registry.UpdateEntries(ctx, updates)
	s.settle(ctx)
	for j, u := range updated {
		i, err := places[j], updateErr(u.Err)
		results[i] = &entryv1.BatchUpdateEntryResponse_Result{Status: s.item(ctx, err)}
		if u.Err == nil {
			results[i].Entry = show(u.Entry, req.GetOutputMask())
		}
		record.end(i, err)
	}
	return &entryv1.BatchUpdateEntryResponse{Results: results}, nil
}

func checkUpdate(m *types.Entry) error {
	switch {
	case m == nil:
		return rpcerr.New(codes.InvalidArgument, "failed to convert entry: missing entry")
	case m.GetId() == "":
		return errMissingID
	}
	return nil
}

// change is what an update does to the entry as the store has it. What cannot
// be read of the message leaves the entry alone.
func (s *Service) change(m *types.Entry, mask *types.EntryMask) func(*registry.Entry) error {
	return func(e *registry.Entry) error {
		w := e.ToWire()
		overlay(w, m, mask)
		now, err := registry.EntryFromWire(s.cfg.TrustDomain, w)
		if err != nil {
			return rpcerr.Prefix(err, "failed to convert entry")
		}
		*e = *now
		return nil
	}
}

func updateErr(err error) error {
	switch e, ok := errors.AsType[*rpcerr.Error](err); {
	case ok:
		return e
	case errors.Is(err, registry.ErrNotFound):
		return rpcerr.New(codes.NotFound, "failed to update entry: entry not found")
	case errors.Is(err, registry.ErrExists):
		return rpcerr.New(codes.AlreadyExists, "failed to update entry: similar entry already exists")
	}
	return rpcerr.Prefix(err, "failed to update entry")
}

// BatchDeleteEntry removes entries.
func (s *Service) BatchDeleteEntry(ctx context.Context, req *entryv1.BatchDeleteEntryRequest) (*entryv1.BatchDeleteEntryResponse, error) {
	if err := checkBatch(len(req.GetIds())); err != nil {
		return nil, err
	}
	record := s.recorder(ctx, "entry.delete", len(req.GetIds()))
	results := make([]*entryv1.BatchDeleteEntryResponse_Result, len(req.GetIds()))
	ids := make([]string, 0, len(results))
	places := make([]int, 0, len(results))
	for i, id := range req.GetIds() {
		record.begin(ctx, i, &types.Entry{Id: id})
		if id == "" {
			results[i] = &entryv1.BatchDeleteEntryResponse_Result{Status: s.item(ctx, errMissingID)}
			record.end(i, errMissingID)
			continue
		}
		ids, places = append(ids, id), append(places, i)
	}
	deleted := s.cfg.Registry.DeleteEntries(ctx, ids)
	s.settle(ctx)
	for j, err := range deleted {
		if errors.Is(err, registry.ErrNotFound) {
			err = errNotFound
		} else {
			err = rpcerr.Prefix(err, "failed to delete entry")
		}
		i := places[j]
		results[i] = &entryv1.BatchDeleteEntryResponse_Result{Id: ids[j], Status: s.item(ctx, err)}
		record.end(i, err)
	}
	return &entryv1.BatchDeleteEntryResponse{Results: results}, nil
}

// item is the status of one item of a batch.
func (s *Service) item(ctx context.Context, err error) *types.Status {
	return rpcerr.Item(ctx, s.cfg.Logger, err)
}
