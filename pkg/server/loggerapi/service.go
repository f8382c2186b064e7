package loggerapi

import (
	"context"
	"log/slog"

	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/server/rpcerr"
	"github.com/credence-id/credence/pkg/telemetry"
)

// Service is logger.v1. Who may call was decided before.
type Service struct {
	loggerv1.UnsafeLoggerServer
	log *telemetry.Log
}

// New returns the service of a log; nil when there is none whose level is this
// server's to change: then every call is FailedPrecondition.
func New(log *telemetry.Log) *Service { return &Service{log: log} }

var errNotOurs = rpcerr.New(codes.FailedPrecondition, "the log of this server belongs to the program that started it: change its level there")

// GetLogger returns the threshold in force and that of the configuration.
func (s *Service) GetLogger(context.Context, *loggerv1.GetLoggerRequest) (*types.Logger, error) {
	if s.log == nil {
		return nil, errNotOurs
	}
	return s.log.APILogger(), nil
}

// SetLogLevel changes the threshold until it is changed again, reset, or the
// server ends.
func (s *Service) SetLogLevel(ctx context.Context, req *loggerv1.SetLogLevelRequest) (*types.Logger, error) {
	if req.GetNewLevel() == types.LogLevel_UNSPECIFIED {
		return nil, rpcerr.New(codes.InvalidArgument, "newLevel value cannot be LogLevel_UNSPECIFIED")
	}
	level, ok := telemetry.FromAPILevel(req.GetNewLevel())
	if !ok {
		return nil, rpcerr.New(codes.InvalidArgument, "unsupported log level")
	}
	return s.set(ctx, level)
}

// ResetLogLevel changes the threshold to that of the configuration.
func (s *Service) ResetLogLevel(ctx context.Context, _ *loggerv1.ResetLogLevelRequest) (*types.Logger, error) {
	if s.log == nil {
		return nil, errNotOurs
	}
	return s.set(ctx, s.log.LaunchLevel())
}

// set changes the threshold and logs that, under the more talkative of the old
// and the new one.
func (s *Service) set(ctx context.Context, level slog.Level) (*types.Logger, error) {
	if s.log == nil {
		return nil, errNotOurs
	}
	caller, _ := policy.FromContext(ctx)
	old := s.log.Level()
	say := func() {
		s.log.Logger().InfoContext(ctx, "log level is changed", telemetry.Level, level.String(), telemetry.Caller, caller.String())
	}
	if level > old {
		say()
	}
	s.log.SetLevel(level)
	if level <= old {
		say()
	}
	return s.log.APILogger(), nil
}
