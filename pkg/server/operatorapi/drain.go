package operatorapi

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/credence-id/credence/pkg/server/rpcerr"
	"github.com/credence-id/credence/pkg/telemetry"
	operatorv1 "github.com/credence-id/credence/proto/operator/v1"
)

const (
	// drainPace is how many agents a second are asked to go where the caller does
	// not say: what a server of two cores takes in beside its work.
	drainPace = 500
	// drainWait is how long the last ones are waited for.
	drainWait = 30 * time.Second
	// maxDrain bounds both times of a request.
	maxDrain = time.Hour
	// progressPause is between two messages about progress.
	progressPause = 200 * time.Millisecond
)

// Drain asks this server's agents to go to others and tells how many are left.
func (s *Service) Drain(req *operatorv1.DrainRequest, stream grpc.ServerStreamingServer[operatorv1.DrainResponse]) (err error) {
	ctx := stream.Context()
	if req.GetUndo() {
		s.begin(ctx, "server.undrain")(nil)
		s.cfg.Feed.Undrain()
		return stream.Send(&operatorv1.DrainResponse{Staying: uint32(s.cfg.Feed.Streams()), Done: true})
	}
	over, err := bounded("over", req.GetOver(), time.Duration(s.cfg.Feed.Streams())*time.Second/drainPace)
	if err != nil {
		return err
	}
	wait, err := bounded("wait", req.GetWait(), drainWait)
	if err != nil {
		return err
	}
	var p progress
	done := s.begin(ctx, "server.drain")
	defer func() { done(err, slog.Int(telemetry.Count, p.left)) }()

	limited, cancel := context.WithTimeout(ctx, over+wait)
	defer cancel()
	err = s.cfg.Feed.Drain(limited, over, func(left int) { p.tell(stream, left) })
	switch {
	case err != nil && (ctx.Err() != nil || limited.Err() == nil):
		return err
	case p.failed != nil:
		return p.failed
	}
	staying := max(0, s.cfg.Feed.Streams()-p.left)
	return stream.Send(&operatorv1.DrainResponse{Left: uint32(p.left), Staying: uint32(staying), Done: true})
}

// bounded is a time of a request, or what it is where the request does not say.
func bounded(field string, d *durationpb.Duration, unset time.Duration) (time.Duration, error) {
	if d == nil {
		return min(unset, maxDrain), nil
	}
	if got := d.AsDuration(); d.CheckValid() == nil && got >= 0 && got <= maxDrain {
		return got, nil
	}
	return 0, rpcerr.New(codes.InvalidArgument, "%s: %v is not between 0 and %v", field, d.AsDuration(), maxDrain)
}

// progress is of one drain; it is told by one goroutine.
type progress struct {
	left   int
	said   time.Time
	failed error
}

func (p *progress) tell(stream grpc.ServerStreamingServer[operatorv1.DrainResponse], left int) {
	p.left = left
	if now := time.Now(); p.failed == nil && now.Sub(p.said) >= progressPause {
		p.said = now
		p.failed = stream.Send(&operatorv1.DrainResponse{Left: uint32(left)})
	}
}
