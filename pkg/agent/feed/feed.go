package feed

import (
	"context"
	"errors"
	"fmt"
	"time"

	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"google.golang.org/grpc"
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

// ErrDiverged says that what the agent holds is not what the server sent.
var ErrDiverged = errors.New("entries held differ from the server's digest")

// Config of one Follow.
type Config struct {
	// Conn is the connection, authenticated with the agent's SVID.
	Conn grpc.ClientConnInterface
	// Cache is kept in sync.
	Cache Cache
	// Version is the agent's, for the operator's lists.
	Version string
	// PollInterval is how often [Poll] asks, ± 10 %; default [PollInterval].
	PollInterval time.Duration
	// OnSynced is called each time the cache has caught up; may be nil.
	OnSynced func()
}

// Follow runs one stream until it ends and says why: the context's error, a
// gRPC status of the server (PermissionDenied with PermissionDeniedDetails when
// the agent is refused, Unimplemented when the server does not know the
// stream; see [Poll]), or ErrDiverged. It never returns nil. The caller may
// call it again, on any connection to a server of the trust domain, and the
// stream goes on from where the cache is.
func Follow(ctx context.Context, c Config) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := feedv1.NewFeedClient(c.Conn).Watch(ctx)
	if err != nil {
		return fmt.Errorf("opening the feed: %w", err)
	}
	open := c.Cache.Open()
	open.AgentVersion = c.Version
	if err := send(stream, &feedv1.WatchRequest{Step: &feedv1.WatchRequest_Open{Open: open}}); err != nil {
		return fmt.Errorf("opening the feed: %w", err)
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("following the feed: %w", err)
		}
		applied, err := apply(c, resp)
		if err != nil {
			return fmt.Errorf("following the feed: %w", err)
		}
		if applied == 0 {
			continue
		}
		ack := &feedv1.WatchRequest{Step: &feedv1.WatchRequest_Ack{Ack: &feedv1.Ack{Revision: applied}}}
		if err := send(stream, ack); err != nil {
			return fmt.Errorf("acknowledging the feed: %w", err)
		}
	}
}

// apply returns the revision to acknowledge, or 0 when more is to come.
func apply(c Config, resp *feedv1.WatchResponse) (uint64, error) {
	switch step := resp.GetStep().(type) {
	case *feedv1.WatchResponse_Delta:
		if err := c.Cache.Apply(step.Delta); err != nil {
			return 0, err
		}
		if step.Delta.GetMore() || len(step.Delta.GetResync()) > 0 {
			return 0, nil
		}
		return step.Delta.GetRevision(), nil
	case *feedv1.WatchResponse_Synced:
		if err := c.Cache.Synced(step.Synced); err != nil {
			return 0, err
		}
		if c.OnSynced != nil {
			c.OnSynced()
		}
		return step.Synced.GetRevision(), nil
	}
	// A step of a newer server. What it would have said is not known, so the
	// stream cannot be vouched for.
	return 0, errors.New("the server sent a step this version does not know; upgrade the agent")
}

// send gives the stream's own end, which says why, precedence over the io.EOF
// that Send reports for it.
func send(stream grpc.BidiStreamingClient[feedv1.WatchRequest, feedv1.WatchResponse], req *feedv1.WatchRequest) error {
	sendErr := stream.Send(req)
	if sendErr == nil {
		return nil
	}
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
	}
}
