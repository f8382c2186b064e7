package server

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"golang.org/x/sync/errgroup"
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
	if got := codes.Code(resp.Results[0].Status.Code); got != codes.OK {
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

// TestEveryAnsweredEntryIsListed lets many clients write at once and read back
// after each write: what was answered is in every list that is asked for later,
// by whomever.
func TestEveryAnsweredEntryIsListed(t *testing.T) {
	t.Parallel()
	const clients, size = 8, 50
	batches := 10
	if os.Getenv("SOAK") != "" {
		batches = 250 // 100,000 entries
	}
	r := start(t, testConfig(t))
	var answered atomic.Int64
	var g errgroup.Group
	for c := range clients {
		client := entryv1.NewEntryClient(r.admin(t))
		g.Go(func() error {
			for b := range batches {
				entries := make([]*types.Entry, size)
				for i := range entries {
					entries[i] = &types.Entry{
						SpiffeId: wireID(fmt.Sprintf("/w/%d/%d/%d", c, b, i)), ParentId: wireID("/spire/agent/join_token/x"),
						Selectors: []*types.Selector{{Type: "unix", Value: "uid:1"}},
					}
				}
				resp, err := client.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: entries})
				if err != nil {
					return err
				}
				for _, one := range resp.Results {
					if one.Status.Code != 0 {
						return fmt.Errorf("client %d, batch %d: %v", c, b, one.Status)
					}
				}
				least := answered.Add(size)
				n, err := client.CountEntries(t.Context(), &entryv1.CountEntriesRequest{})
				if err != nil {
					return err
				}
				if int64(n.Count) < least {
					return fmt.Errorf("%d entries are counted after %d were answered", n.Count, least)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	client := entryv1.NewEntryClient(r.admin(t))
	listed := 0
	for token := ""; ; {
		page, err := client.ListEntries(t.Context(), &entryv1.ListEntriesRequest{OutputMask: &types.EntryMask{}, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		listed += len(page.GetEntries())
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	if want := clients * batches * size; listed != want {
		t.Errorf("listed %d entries, want %d", listed, want)
	}
}
