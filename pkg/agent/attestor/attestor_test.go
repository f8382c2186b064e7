package attestor_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/pkg/agent/attestor"
	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/workload"
	"github.com/google/go-cmp/cmp"
)

// says is an attestor that says what a test wants.
type says struct {
	name        string
	after       time.Duration
	values      []string
	selectors   attest.Selectors // in the place of values
	invalidated chan struct{}
	err         error
}

func (a *says) Name() string { return a.name }

func (a *says) Attest(ctx context.Context, _ workload.Process) (attest.Selectors, <-chan struct{}, error) {
	select {
	case <-time.After(a.after):
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	out := a.selectors
	for _, v := range a.values {
		out = append(out, attest.Selector{Type: a.name, Value: v})
	}
	return out, a.invalidated, a.err
}

// process is all that an attestor of this test asks for.
type process struct{ workload.Process }

func (process) PID() int32 { return 1 }

func newRunner(t *testing.T, log *bytes.Buffer, attestors ...workload.Attestor) *attestor.Runner {
	t.Helper()
	r, err := attestor.New(attestor.Config{Attestors: attestors, Timeout: time.Second, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSideBySide(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := newRunner(t, &log,
			&says{name: "slow", after: 900 * time.Millisecond, values: []string{"b", "a", "a"}},
			&says{name: "late", after: time.Minute, values: []string{"x"}},
			&says{name: "broken", err: errors.New("cannot tell"), values: []string{"x"}},
			&says{name: "silent"},
			&says{name: "liar", selectors: attest.Selectors{{Type: "unix", Value: "uid:0"}}},
			&says{name: "malformed", values: []string{""}},
			&says{name: "huge", values: []string{strings.Repeat("secret", 1000)}},
			&says{name: "gone", err: fs.ErrNotExist},
			&says{name: "quick", values: []string{"c"}},
		)
		start := time.Now()
		got, invalidated, err := r.Attest(t.Context(), process{})
		if err != nil || invalidated != nil {
			t.Fatal(err, invalidated)
		}
		want := attest.Selectors{{Type: "quick", Value: "c"}, {Type: "slow", Value: "a"}, {Type: "slow", Value: "b"}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("selectors (-want +got):\n%s", diff)
		}
		if d := time.Since(start); d != time.Second {
			t.Errorf("took %s, the deadline of each is 1s", d)
		}
		for _, name := range []string{"late", "broken", "liar", "malformed", "huge"} {
			if !strings.Contains(log.String(), "attestor="+name) {
				t.Errorf("%s was not reported", name)
			}
		}
		if strings.Contains(log.String(), "attestor=gone") || strings.Contains(log.String(), "secret") || strings.Contains(log.String(), "uid:0") {
			t.Errorf("log:\n%s", log.String())
		}
	})
}

func TestInvalidated(t *testing.T) {
	t.Parallel()
	closed := func(ch <-chan struct{}) bool {
		synctest.Wait()
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	for name, channels := range map[string]int{"one": 1, "several": 3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var all []workload.Attestor
				var last chan struct{}
				for i := range channels {
					last = make(chan struct{})
					all = append(all, &says{name: string(rune('a' + i)), invalidated: last})
				}
				all = append(all, &says{name: "none"})
				r := newRunner(t, &bytes.Buffer{}, all...)
				ctx, cancel := context.WithCancel(t.Context())
				_, ch, err := r.Attest(ctx, process{})
				if err != nil || ch == nil {
					t.Fatal(err, ch)
				}
				if closed(ch) {
					t.Error("invalidated from the start")
				}
				close(last)
				if !closed(ch) {
					t.Error("not invalidated")
				}
				// A stream that ends leaves nothing behind.
				if _, _, err := r.Attest(ctx, process{}); err != nil {
					t.Fatal(err)
				}
				cancel()
				r.Wait()
			})
		})
	}
}

func TestCallerGoesAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRunner(t, &bytes.Buffer{}, &says{name: "slow", after: time.Hour})
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, _, err := r.Attest(ctx, process{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestNoAttestors(t *testing.T) {
	t.Parallel()
	got, ch, err := newRunner(t, &bytes.Buffer{}).Attest(t.Context(), process{})
	if len(got) != 0 || ch != nil || err != nil {
		t.Error(got, ch, err)
	}
}

// works is an attestor with work of its own.
type works struct {
	says
	run func(context.Context) error
}

func (a *works) Run(ctx context.Context) error { return a.run(ctx) }

func TestRun(t *testing.T) {
	t.Parallel()
	broken := errors.New("cannot go on")
	until := func(ctx context.Context) error { <-ctx.Done(); return nil }
	for name, tc := range map[string]struct {
		attestors []workload.Attestor
		want      error
	}{
		"nobody has work": {attestors: []workload.Attestor{&says{name: "a"}}},
		"until the end":   {attestors: []workload.Attestor{&works{run: until}, &says{name: "b"}, &works{run: until}}},
		"one is broken":   {attestors: []workload.Attestor{&works{run: until}, &works{says: says{name: "c"}, run: func(context.Context) error { return broken }}}, want: broken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				err := newRunner(t, &bytes.Buffer{}, tc.attestors...).Run(ctx)
				if !errors.Is(err, tc.want) || tc.want != nil && !strings.Contains(err.Error(), "attestor c") {
					t.Errorf("Run: %v, want %v", err, tc.want)
				}
			})
		})
	}
}
