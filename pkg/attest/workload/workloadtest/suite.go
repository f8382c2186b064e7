package workloadtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/workload"
	"github.com/google/go-cmp/cmp"
)

// Subject is what the suite needs to know of an attestor.
type Subject struct {
	// New returns the attestor, ready.
	New func(t *testing.T) workload.Attestor
	// One and Two are processes of which it has different things to say.
	One, Two *Process
	// WantOne and WantTwo are those things.
	WantOne, WantTwo attest.Selectors
	// Secrets are pieces of the processes' environment, arguments and the like
	// that no error may quote. The suite adds the selectors' values.
	Secrets []string
	// Stalled returns the attestor with what it asks (a kubelet, a daemon) not
	// answering, and a process to ask about. Optional: the suite stalls the
	// executable in any case.
	Stalled func(t *testing.T) (workload.Attestor, *Process)
}

// Run runs the suite.
func Run(t *testing.T, s Subject) {
	t.Run("answer", s.answer)
	t.Run("process dies at any access", s.deaths)
	t.Run("concurrent", s.concurrent)
	t.Run("deadline", s.deadline)
	t.Run("cancelled before", s.cancelled)
	t.Run("broken proc", s.broken)
}

func (s Subject) attest(ctx context.Context, a workload.Attestor, p workload.Process) (attest.Selectors, error) {
	got, _, err := a.Attest(ctx, p)
	return got, err
}

// answer: the facts, as a sorted set of the attestor's own type.
func (s Subject) answer(t *testing.T) {
	a := s.New(t)
	if cmp.Equal(s.WantOne, s.WantTwo) {
		t.Fatal("One and Two have the same selectors; the suite could not tell them apart")
	}
	for name, of := range map[string]struct {
		process *Process
		want    attest.Selectors
	}{"one": {s.One, s.WantOne}, "two": {s.Two, s.WantTwo}} {
		for range 2 { // the second time from whatever it remembers
			got, invalidated, err := a.Attest(t.Context(), of.process.Clone())
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if diff := cmp.Diff(attest.NewSelectors(of.want...), got); diff != "" {
				t.Errorf("%s: selectors (-want +got):\n%s", name, diff)
			}
			if err := got.Validate(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			for _, sel := range got {
				if sel.Type != a.Name() {
					t.Errorf("%s: selector %s has not the attestor's type %q", name, sel, a.Name())
				}
			}
			select {
			case <-invalidated: // a nil channel never is
				t.Errorf("%s: invalidated at once", name)
			default:
			}
		}
	}
}

// deaths: whenever the process goes, the answer is an error or it is whole.
func (s Subject) deaths(t *testing.T) {
	counted := s.One.Clone()
	if _, err := s.attest(t.Context(), s.New(t), counted); err != nil {
		t.Fatal(err)
	}
	if counted.Accesses() == 0 {
		t.Skip("the attestor does not look at the process itself")
	}
	warm := s.New(t)
	for _, p := range []*Process{s.One, s.Two} {
		if _, err := s.attest(t.Context(), warm, p.Clone()); err != nil {
			t.Fatal(err)
		}
	}
	for name, a := range map[string]workload.Attestor{"cold": s.New(t), "warm": warm} {
		for n := range counted.Accesses() {
			dying := s.One.DieAfter(n)
			got, err := s.attest(t.Context(), a, dying)
			switch {
			case err == nil && (dying.Accesses() > n || !got.Equal(attest.NewSelectors(s.WantOne...))):
				t.Errorf("%s: gone after access %d: selectors %v and no error", name, n, got)
			case err != nil && len(got) != 0:
				t.Errorf("%s: gone after access %d: selectors %v beside the error %v", name, n, got, err)
			case err != nil && !errors.Is(err, syscall.ESRCH) && !errors.Is(err, fs.ErrNotExist):
				t.Errorf("%s: gone after access %d: the error does not wrap the cause: %v", name, n, err)
			}
			s.noSecrets(t, err)
		}
	}
}

// concurrent: no process gets another's facts, not even partly.
func (s Subject) concurrent(t *testing.T) {
	a := s.New(t)
	ctx := t.Context()
	var wg sync.WaitGroup
	for i := range 64 {
		p, want := s.One.Clone(), attest.NewSelectors(s.WantOne...)
		if i%2 == 1 {
			p, want = s.Two.Clone(), attest.NewSelectors(s.WantTwo...)
		}
		wg.Go(func() {
			for range 20 {
				got, err := s.attest(ctx, a, p)
				if err != nil {
					t.Errorf("attest: %v", err)
				}
				if diff := cmp.Diff(want, got); err == nil && diff != "" {
					t.Errorf("selectors (-want +got):\n%s", diff)
				}
			}
		})
	}
	wg.Wait()
}

// deadline: Attest is back in time, whatever does not answer.
func (s Subject) deadline(t *testing.T) {
	const deadline, grace = 50 * time.Millisecond, 2 * time.Second
	// What stalls lets go in the end, so that nothing is left behind.
	stall, release := context.WithTimeout(t.Context(), 2*grace)
	defer release()
	check := func(name string, a workload.Attestor, p workload.Process, mustFail bool) {
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		defer cancel()
		start := time.Now()
		got, err := s.attest(ctx, a, p)
		if took := time.Since(start); took > deadline+grace {
			t.Errorf("%s: took %v with a deadline of %v", name, took, deadline)
		}
		if mustFail && (err == nil || len(got) != 0) {
			t.Errorf("%s: selectors %v, error %v; want an error alone", name, got, err)
		}
		s.noSecrets(t, err)
	}
	check("executable", s.New(t), s.One.Stall(stall), false)
	if s.Stalled != nil {
		a, p := s.Stalled(t)
		check("its source", a, p, true)
	}
}

// cancelled: a caller who is gone gets no work done.
func (s Subject) cancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	got, err := s.attest(ctx, s.New(t), s.One.Clone())
	if !errors.Is(err, context.Canceled) || len(got) != 0 {
		t.Errorf("selectors %v, error %v; want context.Canceled alone", got, err)
	}
}

// broken: files that are cut off or garbage make an error or the whole answer,
// never a part of it.
func (s Subject) broken(t *testing.T) {
	for name, file := range s.One.Files {
		for what, content := range map[string][]byte{
			"empty":   nil,
			"cut off": file.Data[:len(file.Data)/2],
			"garbage": []byte(strings.Repeat("\xff:\x00\n", 1000)),
		} {
			p := s.One.Clone()
			p.Files = make(map[string]*fstest.MapFile, len(s.One.Files))
			for n, f := range s.One.Files {
				p.Files[n] = f
			}
			p.Files[name] = &fstest.MapFile{Data: content, Mode: file.Mode}
			got, err := s.attest(t.Context(), s.New(t), p)
			if err == nil && !attest.NewSelectors(s.WantOne...).Equal(got) {
				t.Errorf("%s %s: selectors %v and no error", name, what, got)
			}
			s.noSecrets(t, err)
		}
	}
}

// noSecrets (S05): an error says what went wrong, not what was found.
func (s Subject) noSecrets(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	text := fmt.Sprintf("%v %+v %#v", err, err, err)
	secrets := s.Secrets
	for _, sel := range append(s.WantOne, s.WantTwo...) {
		if _, value, ok := strings.Cut(sel.Value, ":"); ok && len(value) > 8 { // shorter ones occur by chance
			secrets = append(secrets, value)
		}
	}
	for _, secret := range secrets {
		if strings.Contains(text, secret) {
			t.Errorf("the error quotes %q: %s", secret, text)
		}
	}
}
