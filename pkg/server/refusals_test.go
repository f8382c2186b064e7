package server

import (
	"regexp"
	"strconv"
	"testing"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestRefusalsDoNotFillTheDisk: a stranger who is refused over and over is in the
// audit log with every call, by a line a second.
func TestRefusalsDoNotFillTheDisk(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Server.AuditLogEnabled = true
	r := start(t, cfg)
	const calls = 2000
	client := entryv1.NewEntryClient(r.dial(t, nil))
	for range calls {
		_, err := client.ListEntries(t.Context(), &entryv1.ListEntriesRequest{})
		if status.Code(err) != codes.PermissionDenied {
			t.Fatalf("a stranger's call: %v", err)
		}
	}
	if _, err := entryv1.NewEntryClient(r.admin(t)).GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("an agent's call by the admin: %v", err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	lines, sum := 0, 0
	for _, m := range regexp.MustCompile(`action=call.refuse caller=127[^\n]* subject=/\S*/ListEntries outcome=refused[^\n]*?(?:refused_calls=(\d+))?\n`).FindAllStringSubmatch(r.log.String(), -1) {
		n := 1
		if m[1] != "" {
			n, _ = strconv.Atoi(m[1])
		}
		lines, sum = lines+1, sum+n
	}
	if sum != calls || lines > calls/10 {
		t.Errorf("%d lines stand for %d refusals, want few for %d", lines, sum, calls)
	}
	if !regexp.MustCompile(`action=call.refuse caller=uid:\d+ [^\n]*GetAuthorizedEntries`).MatchString(r.log.String()) {
		t.Error("the admin's refused call is not in the audit log")
	}
}
