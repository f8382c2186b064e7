package feed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Cache holds what the agent is entitled to. It is called by one goroutine of
// this package at a time.
type Cache interface {
	// Open says what is held.
	Open() *feedv1.Open
	// Apply takes one Delta.
	Apply(*feedv1.Delta) error
	// Synced is told where the server stands; a server that keeps no digest
	// leaves it empty. It returns ErrDiverged (wrapped) when the digest is not
	// that of what is held; the next Open is then empty.
	Synced(*feedv1.Synced) error
}

var (
	// ErrDiverged says that what the agent holds is not what the server sent.
	ErrDiverged = errors.New("entries held differ from the server's digest")
	// ErrHandedOver is how a stream ends that HandOver has replaced.
	ErrHandedOver = errors.New("the stream was handed over to another server")
)

// handOverTimeout is how long a server that takes a stream over has until it
// says something. Meanwhile what the old one says waits.
const handOverTimeout = 5 * time.Second

// Config of a stream. Conn and Cache are required.
type Config struct {
	// Conn is the connection, authenticated with the agent's SVID.
	Conn grpc.ClientConnInterface
	// Cache is kept in sync.
	Cache Cache
	// Version is the agent's, for the operator's lists.
	Version string
	// Alternatives is how many other servers the agent could go to, and
	// LastResort that none of them took it lately.
	Alternatives int
	LastResort   bool
	// PollInterval is how often [Poll] asks, ± 10 %; default [PollInterval].
	PollInterval time.Duration
	// OnSynced is called each time the cache has caught up; may be nil.
	OnSynced func()
	// OnDrain is called when the server asks the agent to go to another one,
	// with the reason for the log; it must not block, and may be nil. The stream
	// goes on; see [Stream.HandOver].
	OnDrain func(reason string)
}

// Stream is an open stream that was in sync.
type Stream struct {
	config Config
	watch  grpc.BidiStreamingClient[feedv1.WatchRequest, feedv1.WatchResponse]
	cancel context.CancelFunc

	// turn has a token, which is taken from the first message of a change to
	// its last, so that two servers do not change the cache in turns.
	turn chan struct{}
	// over is why the stream has ended; guarded by turn.
	over error
	// touched and resyncing are used by whoever has the turn: the cache was
	// changed, and some buckets wait for Synced.
	touched, resyncing bool

	mu sync.Mutex
	// guarded by mu:
	refused bool               // the server has refused the agent
	next    context.CancelFunc // of the stream that HandOver opens; nil: none
}

// Follow is Open and Stream.Follow.
func Follow(ctx context.Context, c Config) error {
	s, err := Open(ctx, c)
	if err != nil {
		return err
	}
	return s.Follow()
}

// Open opens a stream, which lives as long as ctx or until it ends, and returns
// it when the cache has caught up with the server. The error is as
// [Stream.Follow]'s. The caller calls Follow, and may call Open again, on any
// connection to a server of the trust domain: the stream goes on from where the
// cache is.
func Open(ctx context.Context, c Config) (*Stream, error) {
	s, err := start(ctx, c)
	if err == nil {
		err = s.catchUp(nil)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// start opens a stream and says what the cache holds.
func start(ctx context.Context, c Config) (*Stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	s := &Stream{config: c, cancel: cancel, turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	var err error
	if s.watch, err = feedv1.NewFeedClient(c.Conn).Watch(ctx); err != nil {
		cancel()
		return nil, fmt.Errorf("opening the feed: %w", err)
	}
	open := c.Cache.Open()
	open.AgentVersion, open.Alternatives, open.LastResort = c.Version, uint32(max(0, c.Alternatives)), c.LastResort
	if err := s.send(&feedv1.WatchRequest{Step: &feedv1.WatchRequest_Open{Open: open}}); err != nil {
		cancel()
		return nil, fmt.Errorf("opening the feed: %w", err)
	}
	return s, nil
}

// catchUp takes what the server says until the first Synced; first, if not nil,
// is called when it says anything.
func (s *Stream) catchUp(first func()) error {
	for {
		resp, err := s.watch.Recv()
		if first != nil {
			first()
			first = nil
		}
		if err == nil {
			_, err = s.take(resp)
		}
		if err != nil {
			s.cancel()
			return fmt.Errorf("following the feed: %w", err)
		}
		if resp.GetSynced() != nil {
			return nil
		}
	}
}

// Follow takes what the server says until the stream ends, and says why: the
// context's error, a gRPC status of the server (PermissionDenied with
// PermissionDeniedDetails when the agent is refused, Unimplemented when the
// server does not know the stream; see [Poll]), ErrDiverged or ErrHandedOver. It
// never returns nil.
func (s *Stream) Follow() error {
	mine := false // the turn
	err := s.follow(&mine)
	if !mine {
		<-s.turn
	}
	defer func() { s.turn <- struct{}{} }()
	s.cancel()
	if s.over == nil {
		s.over = fmt.Errorf("following the feed: %w", err)
	}
	return s.over
}

func (s *Stream) follow(mine *bool) error {
	for {
		resp, err := s.watch.Recv()
		if err != nil {
			if refused(err) {
				s.refuse()
			}
			return err
		}
		if !*mine {
			<-s.turn
			*mine = true
		}
		if s.over != nil {
			return s.over
		}
		whole, err := s.take(resp)
		if err != nil {
			return err
		}
		if whole {
			s.turn <- struct{}{}
			*mine = false
		}
	}
}

// HandOver opens a stream on a connection to another server, as Open does, and
// then ends this one with ErrHandedOver. Until that one is in sync, this one
// stays open, and what it says waits. When that one fails, the error is its own,
// and this one goes on; or ends, when the cache was changed already or the agent
// is refused. When this server refuses the agent meanwhile, that ends both at
// once: the other one may not have heard of it. It is called while Follow runs.
func (s *Stream) HandOver(ctx context.Context, c Config) (*Stream, error) {
	select {
	case <-s.turn:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { s.turn <- struct{}{} }()
	if s.over != nil {
		return nil, s.over
	}
	ctx, cancel := context.WithCancel(ctx)
	next, err := s.takenOver(ctx, cancel, c)
	switch {
	case s.opening(nil):
		cancel()
		return nil, errors.New("the server refused the agent while another one took the stream over")
	case err == nil:
		next.cancel = cancel
		s.over = ErrHandedOver
	case next != nil && next.touched, refused(err):
		s.over = fmt.Errorf("handing the stream over: %w", err)
	}
	if s.over != nil {
		s.cancel()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return next, nil
}

// takenOver opens the stream at the other server and waits until it is in sync.
// cancel ends it, and whatever there is of it before.
func (s *Stream) takenOver(ctx context.Context, cancel context.CancelFunc, c Config) (*Stream, error) {
	if s.opening(cancel) {
		return nil, context.Canceled
	}
	late := time.AfterFunc(handOverTimeout, cancel)
	defer late.Stop()
	next, err := start(ctx, c)
	if err != nil {
		return nil, err
	}
	return next, next.catchUp(func() { late.Stop() })
}

// opening says how to end the stream that HandOver opens, nil when it is done,
// and returns whether the server has refused the agent.
func (s *Stream) opening(cancel context.CancelFunc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next = cancel
	return s.refused
}

// refuse is told that the server has refused the agent.
func (s *Stream) refuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = true
	if s.next != nil {
		s.next()
	}
}

// refused says whether a server has said that the agent may not go on.
func refused(err error) bool {
	st, ok := status.FromError(err)
	return ok && st.Code() == codes.PermissionDenied && slices.ContainsFunc(st.Details(), func(d any) bool {
		_, said := d.(*types.PermissionDeniedDetails)
		return said
	})
}

// take applies one message, acknowledges it, and says whether it ends a change.
func (s *Stream) take(resp *feedv1.WatchResponse) (whole bool, err error) {
	revision, err := s.apply(resp)
	if err != nil {
		return false, err
	}
	if revision != 0 {
		if err := s.send(&feedv1.WatchRequest{Step: &feedv1.WatchRequest_Ack{Ack: &feedv1.Ack{Revision: revision}}}); err != nil {
			return false, fmt.Errorf("acknowledging: %w", err)
		}
	}
	return !s.resyncing && !resp.GetDelta().GetMore(), nil
}

// apply returns the revision to acknowledge, or 0 when more is to come.
func (s *Stream) apply(resp *feedv1.WatchResponse) (uint64, error) {
	switch step := resp.GetStep().(type) {
	case *feedv1.WatchResponse_Delta:
		s.touched = true
		if err := s.config.Cache.Apply(step.Delta); err != nil {
			return 0, err
		}
		s.resyncing = s.resyncing || len(step.Delta.GetResync()) > 0
		if step.Delta.GetMore() || len(step.Delta.GetResync()) > 0 {
			return 0, nil
		}
		return step.Delta.GetRevision(), nil
	case *feedv1.WatchResponse_Synced:
		s.touched, s.resyncing = true, false
		if err := s.config.Cache.Synced(step.Synced); err != nil {
			return 0, err
		}
		if s.config.OnSynced != nil {
			s.config.OnSynced()
		}
		return step.Synced.GetRevision(), nil
	case *feedv1.WatchResponse_Drain:
		if s.config.OnDrain != nil {
			s.config.OnDrain(step.Drain.GetReason())
		}
		return 0, nil
	}
	// A step of a newer server. What it would have said is not known, so the
	// stream cannot be vouched for.
	return 0, errors.New("the server sent a step this version does not know; upgrade the agent")
}

// send gives the stream's own end, which says why, precedence over the io.EOF
// that Send reports for it.
func (s *Stream) send(req *feedv1.WatchRequest) error {
	sendErr := s.watch.Send(req)
	if sendErr == nil {
		return nil
	}
	for {
		if _, err := s.watch.Recv(); err != nil {
			return err
		}
	}
}
