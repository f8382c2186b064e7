package nodetest

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// sample is a method by a shared secret: the agent says its name and answers a
// nonce with a MAC. It is right or, for one flaw, wrong.
type sample struct{ flaw string }

const (
	sampleName = "sample-agent-7"
	secret     = "a shared secret"
)

func (sample) Name() string { return "sample" }

func mac(nonce []byte) []byte {
	h := hmac.New(sha256.New, []byte(secret))
	h.Write(nonce)
	return h.Sum(nil)
}

func (s sample) Verify(ctx context.Context, a node.Attempt) (node.Result, error) {
	name := string(a.Payload)
	switch {
	case s.flaw == "slow" && strings.Contains(name, "canary"):
		time.Sleep(2 * Limit)
	case s.flaw == "scribbler" && len(a.Payload) > 0:
		a.Payload[0]++
	}
	if len(name) > 100 || !strings.HasPrefix(name, "sample-") {
		switch s.flaw {
		case "talkative":
			return node.Result{}, fmt.Errorf("%w: no agent %q", node.ErrRefused, name)
		case "vague":
			return node.Result{}, errors.New("bad name")
		}
		return node.Result{}, fmt.Errorf("%w: the name is not a sample's", node.ErrMalformed)
	}
	id, err := spiffeid.FromSegments(a.TrustDomain, "spire", "agent", "sample", name)
	if s.flaw == "outsider" {
		id, err = spiffeid.FromSegments(a.TrustDomain, name)
	}
	if err != nil {
		return node.Result{}, fmt.Errorf("%w: the name is not a path segment", node.ErrMalformed)
	}
	nonce := make([]byte, 16)
	if _, err := rand.Read(nonce); err != nil {
		return node.Result{}, err
	}
	answer, err := a.Challenge(ctx, nonce)
	switch {
	case err != nil && s.flaw == "deaf":
		return node.Result{}, fmt.Errorf("%w: no answer", node.ErrRefused)
	case err != nil:
		return node.Result{}, err
	case !hmac.Equal(answer, mac(nonce)) && s.flaw != "gullible":
		return node.Result{}, fmt.Errorf("%w: wrong answer", node.ErrRefused)
	}
	return node.Result{AgentID: id, Selectors: attest.NewSelectors(attest.Selector{Type: "sample", Value: "good"}), CanReattest: true}, nil
}

// prover is the agent's half.
type prover struct{ sample }

func (p prover) Prove(ctx context.Context, c node.Conversation) error {
	message := []byte(sampleName)
	for round := 0; ; round++ {
		challenge, err := c.Challenge(ctx, message)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case round > 0 && p.flaw != "patient":
			return fmt.Errorf("%w: a second challenge", node.ErrMalformed)
		}
		message = mac(challenge)
	}
}

const flawEnv = "CREDENCE_NODETEST_FLAW"

// TestSample runs the suite on a good pair; TestSuiteFindsFlaws runs it again
// on bad ones.
func TestSample(t *testing.T) {
	s := sample{flaw: os.Getenv(flawEnv)}
	Run(t, Pair{
		Verifier: s,
		Prover:   func(*testing.T) node.Prover { return prover{s} },
		Want:     node.Result{Selectors: attest.NewSelectors(attest.Selector{Type: "sample", Value: "good"}), CanReattest: true},
		Hostile:  map[string][]byte{"canary": []byte("a-canary"), "slash": []byte("sample-/x")},
		Secrets:  []string{sampleName, secret, "canary"},
	})
}

func TestSuiteFindsFlaws(t *testing.T) {
	t.Parallel()
	for _, flaw := range []string{"slow", "scribbler", "talkative", "vague", "outsider", "deaf", "gullible", "patient"} {
		t.Run(flaw, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSample$", "-test.timeout=60s")
			cmd.Env = append(os.Environ(), flawEnv+"="+flaw)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "FAIL") || strings.Contains(string(out), "panic") {
				t.Errorf("the suite accepted a pair that is %s:\n%s", flaw, out)
			}
		})
	}
}

func TestExchangeEnds(t *testing.T) {
	t.Parallel()
	td := spiffeid.RequireTrustDomainFromString("example.org")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Exchange(ctx, prover{}, sample{}, td, nil); err == nil {
		t.Error("an exchange succeeded after its context's end")
	}
	if _, err := Exchange(t.Context(), mute{}, sample{}, td, nil); !errors.Is(err, errSilent) {
		t.Errorf("a prover that says nothing: %v", err)
	}
}

type mute struct{ sample }

func (mute) Prove(context.Context, node.Conversation) error { return nil }
