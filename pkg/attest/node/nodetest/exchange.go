package nodetest

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Exchange lets p prove itself to v, as an agent with the public key key would
// to a server of the trust domain. It returns what v found, or the first error
// of either half.
func Exchange(ctx context.Context, p node.Prover, v node.Verifier, td spiffeid.TrustDomain, key crypto.PublicKey) (node.Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &wire{toServer: make(chan []byte), toAgent: make(chan answer)}
	var proveErr error
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(w.toServer)
		proveErr = p.Prove(ctx, w)
	})
	result, err := w.serve(ctx, v, td, key)
	cancel()
	wg.Wait()
	switch {
	case err != nil && proveErr != nil && !errors.Is(proveErr, err):
		return node.Result{}, fmt.Errorf("%w; prover: %w", err, proveErr)
	case err != nil:
		return node.Result{}, err
	case proveErr != nil:
		return node.Result{}, fmt.Errorf("prover: %w", proveErr)
	}
	return result, nil
}

// wire carries messages both ways. Its Challenge is the agent's half.
type wire struct {
	toServer chan []byte
	toAgent  chan answer
}

type answer struct {
	challenge []byte
	err       error
}

var errSilent = errors.New("the prover ended without a message")

func (w *wire) serve(ctx context.Context, v node.Verifier, td spiffeid.TrustDomain, key crypto.PublicKey) (node.Result, error) {
	payload, ok := <-w.toServer
	if !ok {
		return node.Result{}, errSilent
	}
	rounds := 0
	result, err := v.Verify(ctx, node.Attempt{
		TrustDomain: td, PublicKey: key, Payload: payload,
		Challenge: func(ctx context.Context, challenge []byte) ([]byte, error) {
			if rounds++; rounds > node.MaxRounds {
				return nil, fmt.Errorf("%w: more than %d challenges", node.ErrRefused, node.MaxRounds)
			}
			if err := w.send(ctx, answer{challenge: challenge}); err != nil {
				return nil, err
			}
			response, ok := <-w.toServer
			if !ok {
				return nil, errSilent
			}
			return response, nil
		},
	})
	end := err
	if end == nil {
		end = io.EOF
	}
	return result, errors.Join(err, w.send(ctx, answer{err: end}))
}

func (w *wire) send(ctx context.Context, a answer) error {
	if len(a.challenge) > node.MaxMessage {
		return fmt.Errorf("a challenge has %d bytes, at most %d are allowed", len(a.challenge), node.MaxMessage)
	}
	select {
	case w.toAgent <- a:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Challenge implements node.Conversation.
func (w *wire) Challenge(ctx context.Context, message []byte) ([]byte, error) {
	if len(message) > node.MaxMessage {
		return nil, fmt.Errorf("%w: a message has %d bytes, at most %d are allowed", node.ErrMalformed, len(message), node.MaxMessage)
	}
	select {
	case w.toServer <- message:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case a := <-w.toAgent:
		return a.challenge, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
