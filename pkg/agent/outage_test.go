package agent

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestStagesOfAnOutage: each stage is said once, in order, and not twice when
// the budget moves back.
func TestStagesOfAnOutage(t *testing.T) {
	t.Parallel()
	type look struct {
		after, left time.Duration
		want        stage
	}
	for name, looks := range map[string][]look{
		"an hour": {
			{0, time.Hour, stageLost},
			{5 * time.Second, time.Hour - 5*time.Second, stageNone},
			{30 * time.Minute, 30 * time.Minute, stageHalf},
			{31 * time.Minute, 29 * time.Minute, stageNone},
			{45 * time.Minute, 15 * time.Minute, stageLow},
			{60 * time.Minute, 0, stageOver},
			{61 * time.Minute, 0, stageNone},
			{62 * time.Minute, 20 * time.Minute, stageNone}, // the workload that waited went away
		},
		"a short one": {
			{0, 10 * time.Minute, stageLost},
			{time.Second, 10*time.Minute - time.Second, stageLow},
			{5 * time.Minute, 5 * time.Minute, stageNone},
			{10 * time.Minute, 0, stageOver},
		},
		"stages that nobody looked at": {
			{0, time.Hour, stageLost},
			{2 * time.Hour, 0, stageOver},
			{2 * time.Hour, 0, stageNone},
		},
		"with nothing to spend": {
			{0, 0, stageLost},
			{time.Minute, 0, stageNone},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var o outage
			begin := time.Unix(1_800_000_000, 0)
			for _, l := range looks {
				if got := o.away(begin.Add(l.after), l.left); got != l.want {
					t.Errorf("%v after the loss, with %v left: stage %d, want %d", l.after, l.left, got, l.want)
				}
			}
			if got := o.start(); !got.Equal(begin) {
				t.Errorf("it began at %v", got)
			}
			lasted := []time.Duration{o.over(begin.Add(3 * time.Hour)), o.over(begin.Add(4 * time.Hour))}
			if diff := cmp.Diff([]time.Duration{3 * time.Hour, 0}, lasted); diff != "" {
				t.Errorf("it lasted (-want +got):\n%s", diff)
			}
			if got := o.away(begin, time.Hour); got != stageLost {
				t.Errorf("the next outage begins with stage %d", got)
			}
		})
	}
}
