package entryapi

import (
	"context"
	"math"
	"time"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// Field numbers of the repeated entries in the messages that carry many.
const (
	listEntries       protowire.Number = 1 // ListEntriesResponse.entries
	authorizedEntries protowire.Number = 1 // GetAuthorizedEntriesResponse.entries
	syncEntries       protowire.Number = 2 // SyncAuthorizedEntriesResponse.entries
)

// entryGuess is the bytes a usual entry takes on the wire.
const entryGuess = 192

// CountEntries counts what the filter selects.
func (s *Service) CountEntries(ctx context.Context, req *entryv1.CountEntriesRequest) (*entryv1.CountEntriesResponse, error) {
	filter, err := s.parseFilter(req.GetFilter())
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Fresh(ctx); err != nil {
		return nil, err
	}
	n := s.cfg.Index.CountEntries(filter, time.Now())
	return &entryv1.CountEntriesResponse{Count: int32(min(n, math.MaxInt32))}, nil
}

// ListEntries lists what the filter selects, ordered by ID. A page has at most
// page_size entries, if it is set, and at most maxMessage bytes; the token is
// the ID of its last entry.
func (s *Service) ListEntries(ctx context.Context, req *entryv1.ListEntriesRequest) (*entryv1.ListEntriesResponse, error) {
	filter, err := s.parseFilter(req.GetFilter())
	if err != nil {
		return nil, err
	}
	if len(req.GetPageToken()) > maxToken {
		return nil, rpcerr.New(codes.InvalidArgument, "page token is not one of this server's")
	}
	if err := s.cfg.Fresh(ctx); err != nil {
		return nil, err
	}
	l := list{to: newAppender(listEntries, req.GetOutputMask()), want: int(req.GetPageSize()), last: req.GetPageToken()}
	if l.want <= 0 {
		l.want = math.MaxInt
	}
	now := time.Now()
	resp := &entryv1.ListEntriesResponse{}
	for more := true; more; {
		page, next := s.cfg.Index.ListPacked(filter, l.last, min(l.want, registry.MaxPage), now)
		cut := l.add(page)
		if (cut || l.want == 0) && (cut || next != "") {
			resp.NextPageToken = l.last
		}
		more = !cut && l.want > 0 && next != ""
	}
	splice(resp, l.raw)
	return resp, nil
}

// list is a page of ListEntries being made.
type list struct {
	to   *appender
	want int    // entries still to be added
	raw  []byte // encoded entries
	last string // ID of the last one
}

// add encodes entries and says whether the page was full before all of them
// were in. One entry is always taken.
func (l *list) add(entries []*registry.Packed) (cut bool) {
	if l.raw == nil {
		l.raw = make([]byte, 0, len(entries)*entryGuess)
	}
	for _, e := range entries {
		before := len(l.raw)
		l.raw = l.to.append(l.raw, e)
		if before > 0 && len(l.raw) > maxMessage {
			l.raw = l.raw[:before]
			return true
		}
		l.last = e.ID()
		l.want--
	}
	return false
}

// splice puts encoded fields into a message: protobuf writes the bytes that it
// keeps for fields it does not know after the others, as they are, and elements
// of a repeated field may stand anywhere in a message. Who reads the message
// without encoding it first does not see them.
func splice(m proto.Message, raw []byte) {
	m.ProtoReflect().SetUnknown(raw)
}

// GetEntry returns the entry with the ID, or NotFound.
func (s *Service) GetEntry(ctx context.Context, req *entryv1.GetEntryRequest) (*types.Entry, error) {
	if req.GetId() == "" {
		return nil, rpcerr.New(codes.InvalidArgument, "missing ID")
	}
	if err := s.cfg.Fresh(ctx); err != nil {
		return nil, err
	}
	e, ok := s.cfg.Index.Entry(req.GetId(), time.Now())
	if !ok {
		return nil, errNotFound
	}
	return show(e, req.GetOutputMask()), nil
}

var errNotFound = rpcerr.New(codes.NotFound, "entry not found")
