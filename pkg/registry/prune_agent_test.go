package registry

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// pruneAgent looks at one agent.
func (r *Registry) pruneAgent(t *testing.T, id spiffeid.ID, before time.Time) (bool, error) {
	t.Helper()
	n, err := r.PruneAgents(t.Context(), before, func(context.Context) ([]spiffeid.ID, error) { return []spiffeid.ID{id}, nil })
	return n == 1, err
}

// TestPruneAgentsInBatches removes more agents than one Update takes, and asks
// which only once it has the lock.
func TestPruneAgentsInBatches(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	lock, err := r.store.Lock(t.Context(), agentLock)
	if err != nil {
		t.Fatal(err)
	}
	var ids []spiffeid.ID
	asked, pruned := make(chan struct{}), make(chan int, 1)
	go func() {
		n, err := r.PruneAgents(t.Context(), time.Now().Add(time.Minute), func(context.Context) ([]spiffeid.ID, error) {
			close(asked)
			return ids, nil
		})
		if err != nil {
			t.Error(err)
		}
		pruned <- n
	}()
	for i := range 3*pruneAgentBatch + 1 {
		a := newAgent(fmt.Sprint("gone-", i))
		a.Serial, a.NotAfter = "", time.Time{}
		if _, err := r.AttestAgent(t.Context(), a, "", nil); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, a.ID)
	}
	select {
	case <-asked:
		t.Error("it looked for agents while another held the lock")
	default:
	}
	lock.Unlock()
	if n := <-pruned; n != len(ids) {
		t.Errorf("removed %d of %d", n, len(ids))
	}
}

func TestPruneAgent(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	now := time.Now()
	for name, tc := range map[string]struct {
		expired, attested time.Duration // how long ago
		banned            bool
		want              bool
	}{
		"long gone":        {2 * time.Hour, 3 * time.Hour, false, true},
		"not long enough":  {30 * time.Minute, 3 * time.Hour, false, false},
		"not expired":      {-time.Hour, 3 * time.Hour, false, false},
		"banned":           {2 * time.Hour, 3 * time.Hour, true, false},
		"unknown":          {0, 0, false, false},
		"exactly too long": {time.Hour, 3 * time.Hour, false, false},
		"attests again":    {2 * time.Hour, 0, false, false},
	} {
		a := newAgent(strings.ReplaceAll(name, " ", "-"))
		a.NotAfter = now.Add(-tc.expired).UTC().Truncate(time.Second)
		if name != "unknown" {
			if _, err := r.AttestAgent(t.Context(), a, "", nil); err != nil {
				t.Fatal(err)
			}
			if _, err := r.UpdateAgent(t.Context(), a.ID, func(a *Agent) error {
				a.AttestedAt = now.Add(-tc.attested).UTC().Truncate(time.Second)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		if tc.banned {
			if err := r.BanAgent(t.Context(), a.ID); err != nil {
				t.Fatal(err)
			}
		}
		got, err := r.pruneAgent(t, a.ID, now.Add(-time.Hour).Truncate(time.Second))
		if err != nil || got != tc.want {
			t.Errorf("%s: removed %v (%v), want %v", name, got, err, tc.want)
		}
		_, err = r.LoadAgent(t.Context(), a.ID)
		if gone := errors.Is(err, ErrNotFound); gone != (tc.want || name == "unknown") {
			t.Errorf("%s: afterwards %v", name, err)
		}
	}
}

// TestPruneLeavesWhoAttests: an agent has no SVID yet while its first is signed.
// One that came by a join token could never come again.
func TestPruneLeavesWhoAttests(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	a := newAgent("new")
	a.Serial, a.NotAfter = "", time.Time{}
	if _, err := r.AttestAgent(t.Context(), a, "", nil); err != nil {
		t.Fatal(err)
	}
	if gone, err := r.pruneAgent(t, a.ID, time.Now().Add(-time.Minute)); err != nil || gone {
		t.Errorf("removed %v: %v", gone, err)
	}
	if gone, err := r.pruneAgent(t, a.ID, time.Now().Add(time.Minute)); err != nil || !gone {
		t.Errorf("one that never got it: removed %v: %v", gone, err)
	}
}
