package workloadtest

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/workload"
)

// sample says what the files a and b hold, well or, for one flaw, badly.
type sample struct {
	flaw string
	last attest.Selectors
}

func (*sample) Name() string { return "sample" }

func (s *sample) Attest(ctx context.Context, p workload.Process) (attest.Selectors, <-chan struct{}, error) {
	if err := ctx.Err(); err != nil && s.flaw != "ignores cancellation" {
		return nil, nil, err
	}
	var out []attest.Selector
	for _, name := range []string{"a", "b"} {
		b, err := fs.ReadFile(p.Proc(), name)
		switch {
		case err != nil && s.flaw == "partial":
			continue
		case err != nil && s.flaw == "stale":
			return s.last, nil, nil
		case err != nil:
			return nil, nil, err
		}
		value, ok := strings.CutSuffix(string(b), ".")
		if !ok {
			return nil, nil, fs.ErrInvalid
		}
		out = append(out, attest.Selector{Type: "sample", Value: name + ":" + value})
	}
	if s.flaw == "slow" {
		f, err := p.OpenExe()
		if err != nil {
			return nil, nil, err
		}
		_, err = f.Read(make([]byte, 1))
		_ = err // its content does not matter, the wait does
	}
	if s.flaw == "foreign type" {
		out[0].Type = "other"
	}
	set := attest.NewSelectors(out...)
	if s.flaw == "stale" {
		s.last = set
	}
	return set, nil, nil
}

func subject(flaw string) Subject {
	of := func(a, b string) (*Process, attest.Selectors) {
		return &Process{ID: 7, Files: fstest.MapFS{"a": {Data: []byte(a + ".")}, "b": {Data: []byte(b + ".")}}},
			attest.NewSelectors(attest.Selector{Type: "sample", Value: "a:" + a}, attest.Selector{Type: "sample", Value: "b:" + b})
	}
	s := Subject{New: func(*testing.T) workload.Attestor { return &sample{flaw: flaw} }}
	s.One, s.WantOne = of("x", "y")
	s.Two, s.WantTwo = of("x", "z")
	return s
}

const flawEnv = "CREDENCE_WORKLOADTEST_FLAW"

// TestSample runs the suite on a good attestor; TestSuiteFindsFlaws runs it
// again on bad ones.
func TestSample(t *testing.T) {
	Run(t, subject(os.Getenv(flawEnv)))
}

func TestSuiteFindsFlaws(t *testing.T) {
	t.Parallel()
	for _, flaw := range []string{"partial", "stale", "slow", "foreign type", "ignores cancellation"} {
		t.Run(flaw, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSample$", "-test.timeout=20s")
			cmd.Env = append(os.Environ(), flawEnv+"="+flaw)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "FAIL") {
				t.Errorf("the suite accepted an attestor that is %s:\n%s", flaw, out)
			}
		})
	}
}
