package entryapi

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// GetAuthorizedEntries sends all entries that the calling agent is entitled to
// in one message.
func (s *Service) GetAuthorizedEntries(ctx context.Context, req *entryv1.GetAuthorizedEntriesRequest) (*entryv1.GetAuthorizedEntriesResponse, error) {
	entries, err := s.authorized(ctx)
	if err != nil {
		return nil, err
	}
	raw := make([]byte, 0, len(entries)*entryGuess)
	to := newAppender(authorizedEntries, req.GetOutputMask())
	for _, e := range entries {
		raw = to.append(raw, e)
		if len(raw) > maxAuthorized {
			return nil, rpcerr.New(codes.ResourceExhausted,
				"the %d authorized entries do not fit into one message: use SyncAuthorizedEntries", len(entries))
		}
	}
	resp := &entryv1.GetAuthorizedEntriesResponse{}
	splice(resp, raw)
	return resp, nil
}

// authorized returns what the calling agent is entitled to now.
func (s *Service) authorized(ctx context.Context) ([]*registry.Packed, error) {
	agent, err := callingAgent(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Fresh(ctx); err != nil {
		return nil, err
	}
	return s.cfg.Entitlements.Authorized(agent, time.Now()), nil
}

// SyncAuthorizedEntries sends a small set of entries whole, and of a large one
// the revisions, then the entries that the agent asks for by their IDs. What is
// sent for an ID is the entry as it is then, and nothing for one that the agent
// is not entitled to any more.
func (s *Service) SyncAuthorizedEntries(stream entryv1.Entry_SyncAuthorizedEntriesServer) error {
	req, err := stream.Recv()
	if err != nil {
		return ended(err)
	}
	if len(req.GetIds()) > 0 {
		return rpcerr.New(codes.InvalidArgument, "specifying IDs on initial request is not supported")
	}
	mask := req.GetOutputMask()
	if mask != nil && !mask.RevisionNumber {
		return rpcerr.New(codes.InvalidArgument, "revision number cannot be masked")
	}
	agent, err := callingAgent(stream.Context())
	if err != nil {
		return err
	}
	entries, err := s.authorized(stream.Context())
	if err != nil {
		return err
	}
	if raw, ok := small(entries, mask); ok {
		resp := &entryv1.SyncAuthorizedEntriesResponse{}
		splice(resp, raw)
		return stream.Send(resp)
	}
	if err := sendRevisions(stream, entries); err != nil {
		return err
	}
	for {
		req, err := stream.Recv()
		if err != nil {
			return ended(err)
		}
		if err := s.sendEntries(stream, agent, req.GetIds(), mask); err != nil {
			return err
		}
	}
}

// callingAgent is the agent that the interceptor let in.
func callingAgent(ctx context.Context) (spiffeid.ID, error) {
	caller, ok := policy.FromContext(ctx)
	if !ok || !caller.Is(policy.Agent) {
		return spiffeid.ID{}, rpcerr.New(codes.PermissionDenied, "the caller is not an agent")
	}
	return caller.ID, nil
}

// ended is nil for the two ways in which a client ends the stream that are no
// fault: it closes it, or goes away.
func ended(err error) error {
	if errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
		return nil
	}
	return err
}

// small encodes entries if they go into one message.
func small(entries []*registry.Packed, mask *types.EntryMask) (raw []byte, ok bool) {
	if len(entries) > syncPage {
		return nil, false
	}
	raw = make([]byte, 0, len(entries)*entryGuess)
	to := newAppender(syncEntries, mask)
	for _, e := range entries {
		raw = to.append(raw, e)
		if len(raw) > maxMessage {
			return nil, false
		}
	}
	return raw, true
}

func sendRevisions(stream entryv1.Entry_SyncAuthorizedEntriesServer, entries []*registry.Packed) error {
	block := make([]entryv1.EntryRevision, syncPage)
	for len(entries) > 0 {
		page := entries[:min(len(entries), syncPage)]
		entries = entries[len(page):]
		resp := &entryv1.SyncAuthorizedEntriesResponse{
			EntryRevisions: make([]*entryv1.EntryRevision, len(page)),
			More:           len(entries) > 0,
		}
		for i, e := range page {
			block[i].Id = e.ID()
			block[i].RevisionNumber, block[i].CreatedAt = e.Versions()
			resp.EntryRevisions[i] = &block[i]
		}
		// The message is encoded before Send returns, so the block is free again.
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
	return nil
}

// sendEntries sends the entries with the IDs asked for that the agent may have.
// The last message, which may hold nothing, says that there are no more.
func (s *Service) sendEntries(stream entryv1.Entry_SyncAuthorizedEntriesServer, agent spiffeid.ID, ids []string, mask *types.EntryMask) error {
	var raw, one []byte
	to := newAppender(syncEntries, mask)
	count := 0
	send := func(more bool) error {
		resp := &entryv1.SyncAuthorizedEntriesResponse{More: more}
		splice(resp, raw)
		raw, count = raw[:0], 0 // The message is encoded before Send returns.
		return stream.Send(resp)
	}
	slices.Sort(ids)
	now := time.Now()
	for _, id := range slices.Compact(ids) {
		e, ok := s.cfg.Entitlements.Lookup(agent, id, now)
		if !ok {
			continue
		}
		one = to.append(one[:0], e)
		if count == syncPage || count > 0 && len(raw)+len(one) > maxMessage {
			if err := send(true); err != nil {
				return err
			}
		}
		raw = append(raw, one...)
		count++
	}
	return send(false)
}
