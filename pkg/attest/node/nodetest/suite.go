package nodetest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Pair is a method to be tested.
type Pair struct {
	// Verifier is the server's half. It is used concurrently.
	Verifier node.Verifier
	// Prover returns an agent's half whose evidence the Verifier accepts.
	Prover func(t *testing.T) node.Prover
	// Want is the answer to that evidence, except for AgentID, which is
	// checked by form, and JoinToken.
	Want node.Result
	// Hostile are payloads, by name, that the Verifier must refuse.
	Hostile map[string][]byte
	// Secrets are pieces of good or hostile evidence that no error may repeat.
	Secrets []string
}

// Run runs the suite.
func Run(t *testing.T, p Pair) {
	t.Run("genuine", p.genuine)
	t.Run("concurrent", p.concurrent)
	t.Run("hostile payloads", p.hostile)
	t.Run("hostile answers", p.answers)
	t.Run("lost agent", p.lostAgent)
	t.Run("hostile server", p.server)
	t.Run("lost server", p.lostServer)
}

func newKey(t *testing.T) crypto.PublicKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key.Public()
}

// valid says whether the server may believe the result.
func (p Pair) valid(r node.Result, td spiffeid.TrustDomain) error {
	prefix := "/spire/agent/" + p.Verifier.Name() + "/"
	switch rest, ok := strings.CutPrefix(r.AgentID.Path(), prefix); {
	case r.AgentID.TrustDomain() != td:
		return fmt.Errorf("agent ID %s is not of the trust domain %s", r.AgentID, td)
	case !ok || rest == "":
		return fmt.Errorf("agent ID %s is not below %s", r.AgentID, prefix)
	}
	for _, sel := range r.Selectors {
		if sel.Type != p.Verifier.Name() {
			return fmt.Errorf("selector %s has not the method's type", sel)
		}
	}
	if !r.Selectors.Equal(attest.NewSelectors(r.Selectors...)) {
		return fmt.Errorf("selectors %v are not a sorted set", r.Selectors)
	}
	return r.Selectors.Validate()
}

// genuine: good evidence is accepted, in any trust domain.
func (p Pair) genuine(t *testing.T) {
	if got := p.Prover(t).Name(); got != p.Verifier.Name() {
		t.Errorf("the prover is %q, the verifier %q", got, p.Verifier.Name())
	}
	for _, name := range []string{"example.org", "other.test"} {
		td := spiffeid.RequireTrustDomainFromString(name)
		got, err := Exchange(t.Context(), p.Prover(t), p.Verifier, td, newKey(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.valid(got, td); err != nil {
			t.Error(err)
		}
		got.AgentID, got.JoinToken = spiffeid.ID{}, ""
		if diff := cmp.Diff(p.Want, got, cmp.AllowUnexported(spiffeid.ID{})); diff != "" {
			t.Errorf("result (-want +got):\n%s", diff)
		}
	}
}

// concurrent: attempts do not disturb each other.
func (p Pair) concurrent(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	ctx := t.Context()
	var wg sync.WaitGroup
	for range 32 {
		prover, key := p.Prover(t), newKey(t)
		wg.Go(func() {
			if _, err := Exchange(ctx, prover, p.Verifier, td, key); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// genuinePayload is the first message of good evidence.
func (p Pair) genuinePayload(t *testing.T) []byte {
	t.Helper()
	var first []byte
	err := p.Prover(t).Prove(t.Context(), conversation(func(_ context.Context, message []byte) ([]byte, error) {
		if first == nil {
			first = slices.Clone(message)
		}
		return nil, io.EOF
	}))
	if first == nil {
		t.Fatalf("the prover sent nothing: %v", err)
	}
	return first
}

// hostile: what must be refused is, and nothing makes the verifier fail in
// another way, or slow (S07).
func (p Pair) hostile(t *testing.T) {
	for name, payload := range p.Hostile {
		if got, err := p.try(t, name, payload, deadAgent); err == nil {
			t.Errorf("%s: accepted as %s", name, got.AgentID)
		}
	}
	for name, payload := range garbage(p.genuinePayload(t)) {
		_, _ = p.try(t, name, payload, deadAgent) // try says what is wrong
	}
}

// garbage is bytes that mean nothing, and good bytes made bad.
func garbage(good []byte) map[string][]byte {
	out := map[string][]byte{
		"nil": nil, "empty": {}, "zero byte": {0}, "not UTF-8": {0xff, 0xfe}, "line end": []byte("\n"),
		"JSON null": []byte("null"), "JSON of another shape": []byte(`{"a":[1,{"b":"c"}]}`), "JSON array": []byte("[]"),
		"deep JSON": []byte(strings.Repeat("[", node.MaxMessage)), "deep object": []byte(strings.Repeat(`{"a":`, node.MaxMessage/5)),
		"long number": []byte("1" + strings.Repeat("0", node.MaxMessage-1)),
		"zeros":       make([]byte, node.MaxMessage), "ones": bytes.Repeat([]byte{0xff}, node.MaxMessage),
		"blanks": bytes.Repeat([]byte(" "), node.MaxMessage), "letters": bytes.Repeat([]byte("a"), node.MaxMessage),
		"dots": bytes.Repeat([]byte("../"), node.MaxMessage/3), "DER of huge length": {0x30, 0x84, 0xff, 0xff, 0xff, 0xff},
		"twice": slices.Concat(good, good), "good and a line end": slices.Concat(good, []byte("\n")), "good and zero": slices.Concat(good, []byte{0}),
	}
	for i := range min(len(good), 64) {
		flipped := slices.Clone(good)
		at := i * len(good) / min(len(good), 64)
		flipped[at] ^= 0x80
		out[fmt.Sprintf("byte %d changed", at)] = flipped
		out[fmt.Sprintf("first %d bytes", at)] = good[:at]
	}
	return out
}

// deadAgent does not answer challenges.
func deadAgent(context.Context, []byte) ([]byte, error) { return nil, io.ErrUnexpectedEOF }

// try verifies and checks what every answer must be like. The fastest of five
// counts, as the machine has other work.
func (p Pair) try(t *testing.T, name string, payload []byte, agent func(context.Context, []byte) ([]byte, error)) (got node.Result, err error) {
	t.Helper()
	td := spiffeid.RequireTrustDomainFromString("example.org")
	attempt := node.Attempt{TrustDomain: td, PublicKey: newKey(t), Payload: slices.Clone(payload), Challenge: agent}
	fastest := time.Hour
	for range 5 {
		start := time.Now()
		got, err = p.Verifier.Verify(t.Context(), attempt)
		fastest = min(fastest, time.Since(start))
		if fastest <= Limit {
			break
		}
	}
	if fastest > Limit {
		t.Errorf("%s: took %v, at most %v are allowed", name, fastest, Limit)
	}
	if !bytes.Equal(attempt.Payload, payload) {
		t.Errorf("%s: the verifier changed the payload", name)
	}
	if err == nil {
		if invalid := p.valid(got, td); invalid != nil {
			t.Errorf("%s: accepted, but %v", name, invalid)
		}
		return got, nil
	}
	if !cmp.Equal(got, node.Result{}, cmp.AllowUnexported(spiffeid.ID{})) {
		t.Errorf("%s: a result beside the error %v", name, err)
	}
	if !errors.Is(err, node.ErrMalformed) && !errors.Is(err, node.ErrRefused) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%s: the error does not say that it is the agent's: %v", name, err)
	}
	p.noSecrets(t, name, err)
	return got, err
}

// noSecrets (S05, S22): evidence is not repeated to whoever reads the error.
func (p Pair) noSecrets(t *testing.T, name string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	text := fmt.Sprintf("%v %+v %#v", err, err, err)
	if len(text) > 4096 {
		t.Errorf("%s: the error has %d bytes", name, len(text))
	}
	for _, secret := range p.Secrets {
		if strings.Contains(text, secret) {
			t.Errorf("%s: the error repeats %q", name, secret)
		}
	}
}

// answers: good evidence, and then garbage instead of answers.
func (p Pair) answers(t *testing.T) {
	good := p.genuinePayload(t)
	for name, response := range garbage(good) {
		rounds := 0
		_, err := p.try(t, name, good, func(_ context.Context, challenge []byte) ([]byte, error) {
			if len(challenge) > node.MaxMessage {
				t.Errorf("%s: a challenge has %d bytes", name, len(challenge))
			}
			if rounds++; rounds > 5*node.MaxRounds { // try may try five times
				return nil, fmt.Errorf("%w: too many rounds", node.ErrRefused)
			}
			return response, nil
		})
		if rounds > 5*node.MaxRounds {
			t.Errorf("%s: %d challenges", name, rounds)
		}
		if err == nil && rounds > 0 {
			t.Errorf("%s: accepted as the answer to a challenge", name)
		}
	}
}

// lostAgent: what ended the stream is what Verify returns, if it had asked.
func (p Pair) lostAgent(t *testing.T) {
	lost := errors.New("the stream broke")
	asked := false
	_, err := p.Verifier.Verify(t.Context(), node.Attempt{
		TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"),
		PublicKey:   newKey(t), Payload: p.genuinePayload(t),
		Challenge: func(context.Context, []byte) ([]byte, error) { asked = true; return nil, lost },
	})
	if asked && !errors.Is(err, lost) {
		t.Errorf("after the stream broke: %v", err)
	}
	if errors.Is(err, node.ErrRefused) {
		t.Errorf("a broken stream is refused for good: %v", err)
	}
}

type conversation func(context.Context, []byte) ([]byte, error)

func (c conversation) Challenge(ctx context.Context, message []byte) ([]byte, error) {
	return c(ctx, message)
}

// server: a server that asks nonsense, for ever, gets no more than the rounds
// of an attestation out of the agent.
func (p Pair) server(t *testing.T) {
	for name, challenge := range garbage([]byte("challenge")) {
		rounds := 0
		err := p.Prover(t).Prove(t.Context(), conversation(func(_ context.Context, message []byte) ([]byte, error) {
			if len(message) > node.MaxMessage {
				t.Errorf("%s: a message has %d bytes", name, len(message))
			}
			if rounds++; rounds > 100 {
				return nil, io.ErrUnexpectedEOF
			}
			return challenge, nil
		}))
		if err == nil || rounds > node.MaxRounds+1 {
			t.Errorf("%s, for ever: error %v after %d rounds", name, err, rounds)
		}
		p.noSecrets(t, name, err)
	}
}

// lostServer: the conversation's error is the prover's.
func (p Pair) lostServer(t *testing.T) {
	for _, lost := range []error{errors.New("unavailable"), context.Canceled, fmt.Errorf("told so: %w", node.ErrRefused)} {
		err := p.Prover(t).Prove(t.Context(), conversation(func(context.Context, []byte) ([]byte, error) { return nil, lost }))
		if !errors.Is(err, lost) {
			t.Errorf("the server ended with %v, the prover with %v", lost, err)
		}
	}
}
