package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/pkg/audit"
)

// line is what the tests look at of a record.
type line struct {
	Caller, Subject string
	Calls           float64 // 0: a record of one call
}

func lines(t *testing.T, buf *bytes.Buffer) []line {
	t.Helper()
	var all []line
	for _, r := range records(t, buf) {
		if r["outcome"] != "refused" || r["err"] != "no" || r["action"] != "call.refuse" {
			t.Errorf("record %v", r)
		}
		l := line{Caller: r["caller"].(string), Subject: r["subject"].(string)}
		l.Calls, _ = r["refused_calls"].(float64)
		all = append(all, l)
	}
	return all
}

// refusing runs Refusals that write to the buffer, in a bubble.
func refusing(t *testing.T) (refuse func(caller, subject string), stop func(), buf *bytes.Buffer) {
	buf = new(bytes.Buffer)
	r := audit.NewRefusals[string](audit.New(slog.New(slog.NewJSONHandler(buf, nil))))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	refuse = func(caller, subject string) {
		r.Record(t.Context(), caller, audit.Event{Action: "call.refuse", Caller: caller, Subject: subject}, errors.New("no"))
	}
	return refuse, func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}, buf
}

// TestRefusalsAreCounted: a caller's first is recorded at once, the rest by their
// number once a second, and after a quiet second the next is a first again.
func TestRefusalsAreCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		refuse, stop, buf := refusing(t)
		for range 3 { // 3 s of 100 calls each, of one caller
			for i := range 100 {
				refuse("a", fmt.Sprint("/", i))
				time.Sleep(10 * time.Millisecond)
			}
		}
		refuse("b", "/b") // not counted with the other's
		time.Sleep(time.Second)
		synctest.Wait()
		byCaller := map[string][]line{}
		for _, l := range lines(t, buf) {
			byCaller[l.Caller] = append(byCaller[l.Caller], l)
		}
		if diff := cmp.Diff([]line{{"b", "/b", 0}}, byCaller["b"]); diff != "" {
			t.Errorf("records of b (-want +got):\n%s", diff)
		}
		sum := 0.0
		for i, l := range byCaller["a"] {
			if sum += l.Calls; (l.Calls == 0) != (i == 0) {
				t.Errorf("record %d is %+v", i, l)
			}
		}
		if n := len(byCaller["a"]); n > 5 || sum != 299 {
			t.Errorf("%d records that count %v calls, want one a second that count 299", n, sum)
		}
		time.Sleep(3 * time.Second)
		refuse("a", "/again")
		refuse("a", "/counted")
		stop() // records what was counted
		if diff := cmp.Diff([]line{{"a", "/again", 0}, {"a", "/counted", 1}}, lines(t, buf)); diff != "" {
			t.Errorf("records after a quiet time (-want +got):\n%s", diff)
		}
	})
}

// TestRefusalsAreBounded: of many callers at once some are told apart, and all
// are counted.
func TestRefusalsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		refuse, stop, buf := refusing(t)
		for range 2 {
			for i := range 1000 {
				refuse(fmt.Sprint(i), "/x")
			}
		}
		time.Sleep(1500 * time.Millisecond)
		stop()
		got, sum := lines(t, buf), 0.0
		for _, l := range got {
			sum += max(1, l.Calls)
		}
		if most := 2*audit.MaxRefused + 1; len(got) != most || sum != 2000 {
			t.Errorf("%d records of %v refusals, want %d of 2000", len(got), sum, most)
		}
		if last := got[len(got)-1]; last.Caller != "others" || last.Calls != 2*(1000-audit.MaxRefused) {
			t.Errorf("the others' record is %+v", last)
		}
	})
}

func TestNilRefusalsRecordNothing(t *testing.T) {
	t.Parallel()
	var none *audit.Refusals[string]
	none.Record(t.Context(), "a", audit.Event{}, nil)
	audit.NewRefusals[string](nil).Record(t.Context(), "a", audit.Event{}, nil)
}
