package server

import (
	"testing"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

func TestServes(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	conn := r.admin(t)
	resp, err := entryv1.NewEntryClient(conn).BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{
		Entries: []*types.Entry{{
			SpiffeId:  &types.SPIFFEID{TrustDomain: testDomain, Path: "/workload"},
			ParentId:  &types.SPIFFEID{TrustDomain: testDomain, Path: "/spire/agent/join_token/x"},
			Selectors: []*types.Selector{{Type: "unix", Value: "uid:1000"}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := codes.Code(resp.Results[0].Status.Code); got != codes.OK { //nolint:gosec // A code.
		t.Fatalf("status %v: %s", got, resp.Results[0].Status.Message)
	}
	list, err := entryv1.NewEntryClient(conn).ListEntries(t.Context(), &entryv1.ListEntriesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Entries) != 1 || list.Entries[0].Id != resp.Results[0].Entry.Id {
		t.Errorf("listed %v", list.Entries)
	}
	h, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil || h.Status != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", h, err)
	}
	if err := r.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
}
