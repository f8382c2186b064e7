package etcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/store"
)

// cause is why etcd did not do what it was asked: a name for metrics, and what
// to do.
type cause struct{ name, hint string }

// The causes there are.
var (
	causeQuota = cause{"quota", "its space is used up (NOSPACE), it reads and does not write: " +
		"compact and defragment it, then run `etcdctl alarm disarm`, or raise its quota-backend-bytes"}
	causeCorrupt  = cause{"corrupt", "it found its data damaged and stopped: replace the member that `etcdctl alarm list` names"}
	causePassword = cause{"credentials", "it refused username and password: correct them, or the user in etcd"}
	causeDenied   = cause{"permission", "the user may not do this: grant it a role with permission readwrite on the prefix"}
	causeLeader   = cause{"leader", "its members have no leader: start those that are down, or mend the network between them"}
	causeSlow     = cause{"slow", "it did not answer in time: look at its disk and load, or raise request_timeout"}
	causeAway     = cause{"unreachable", "no member answers: look at the endpoints, the network and TLS"}
	causeBusy     = cause{"busy", "it has too many requests waiting: look at its disk and load"}
	causeOld      = cause{"history", "the revision that was read is compacted away: read again, or keep a longer history"}
	causeOther    = cause{"other", "see etcd's own log"}
)

// diagnose finds the cause of an error of the client.
func diagnose(err error) cause {
	is := func(targets ...error) bool {
		for _, t := range targets {
			if errors.Is(rpctypes.Error(err), t) || errors.Is(err, t) {
				return true
			}
		}
		return false
	}
	switch {
	case is(rpctypes.ErrNoSpace):
		return causeQuota
	case is(rpctypes.ErrCorrupt):
		return causeCorrupt
	case is(rpctypes.ErrAuthFailed, rpctypes.ErrInvalidAuthToken, rpctypes.ErrUserEmpty, rpctypes.ErrUserNotFound):
		return causePassword
	case is(rpctypes.ErrPermissionDenied):
		return causeDenied
	case is(rpctypes.ErrNoLeader, rpctypes.ErrTimeoutDueToLeaderFail, rpctypes.ErrLeaderChanged, rpctypes.ErrNotLeader):
		return causeLeader
	case is(rpctypes.ErrTimeout, rpctypes.ErrTimeoutDueToConnectionLost, rpctypes.ErrTimeoutWaitAppliedIndex):
		return causeLeader
	case is(rpctypes.ErrTooManyRequests):
		return causeBusy
	case is(rpctypes.ErrCompacted):
		return causeOld
	case is(context.DeadlineExceeded) || code(err) == codes.DeadlineExceeded:
		return causeSlow
	case code(err) == codes.Unavailable:
		return causeAway
	}
	return causeOther
}

// code is the gRPC code of an error, also of those the client has translated.
func code(err error) codes.Code {
	if e, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		return e.Code()
	}
	return status.Code(err)
}

// explain wraps an error of the client in ErrUnavailable.
func explain(op string, err error) error {
	return fmt.Errorf("%w: %s in etcd: %s: %w", store.ErrUnavailable, op, diagnose(err).hint, err)
}

// refused says whether etcd certainly did not do what it answered this to:
// everything else may have happened.
func refused(err error) bool {
	switch code(err) {
	case codes.InvalidArgument, codes.ResourceExhausted, codes.PermissionDenied, codes.Unauthenticated,
		codes.FailedPrecondition, codes.OutOfRange, codes.NotFound, codes.Unimplemented:
		return true
	}
	return false
}

// passing says whether another member, or the same one in a moment, may answer.
func passing(err error) bool {
	switch code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unknown, codes.Unauthenticated:
		return diagnose(err) != causeDenied
	}
	return false
}
