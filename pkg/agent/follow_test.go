package agent

import (
	"errors"
	"testing"
	"time"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// denied is the server's refusal with a reason.
func denied(t *testing.T, reason types.PermissionDeniedDetails_Reason) error {
	t.Helper()
	s, err := status.New(codes.PermissionDenied, "no").WithDetails(&types.PermissionDeniedDetails{Reason: reason})
	if err != nil {
		t.Fatal(err)
	}
	return s.Err()
}

// TestContested: two agents with the same evidence, such as a certificate on a
// copied disk, end each other's SVID. Each of them works for a moment, and they
// must not attest several times a second for ever.
func TestContested(t *testing.T) {
	t.Parallel()
	now := time.Now()
	notActive := denied(t, types.PermissionDeniedDetails_AGENT_NOT_ACTIVE)
	for name, tt := range map[string]struct {
		err  error
		own  *nodeSVID
		want bool
	}{
		"taken over":        {notActive, &nodeSVID{taken: now.Add(-time.Second)}, true},
		"at the end":        {notActive, &nodeSVID{taken: now.Add(-contestedLife + 1)}, true},
		"used for long":     {notActive, &nodeSVID{taken: now.Add(-contestedLife)}, false},
		"of an earlier run": {notActive, &nodeSVID{}, false},
		"none":              {notActive, nil, false},
		"evicted":           {denied(t, types.PermissionDeniedDetails_AGENT_NOT_ATTESTED), &nodeSVID{taken: now}, false},
		"other":             {errors.New("lost"), &nodeSVID{taken: now}, false},
	} {
		if got := contested(tt.err, tt.own, now); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}

	var b backoff
	last := time.Duration(0)
	for range 12 {
		wait := b.next(notActive, true, true)
		if wait < last {
			t.Errorf("waits %v after %v", wait, last)
		}
		last = wait
	}
	if last != refusedMax {
		t.Errorf("waits %v at the end, want %v", last, refusedMax)
	}
	if wait := b.next(errors.New("lost"), true, false); wait != backoffFirst {
		t.Errorf("after a session that worked: waits %v", wait)
	}
	for range 12 {
		last = b.next(errors.New("lost"), false, false)
	}
	if last != backoffMax {
		t.Errorf("of a server that is away: waits %v at the end, want %v", last, backoffMax)
	}
	for range 12 {
		last = b.next(ErrRefused, false, false)
	}
	if last != refusedMax {
		t.Errorf("refused: waits %v at the end, want %v", last, refusedMax)
	}
}
