package k8spsat

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/credence-id/credence/pkg/attest/node"
)

const (
	// maxKeySet bounds a key set, in bytes.
	maxKeySet = 1 << 20
	// fetchTimeout bounds one fetch of a key set.
	fetchTimeout = 10 * time.Second
	// fetchPause is between two fetches, whatever key IDs strangers make up.
	fetchPause = 10 * time.Second
	// keysFresh is how old keys may be before they are fetched again when they
	// are next needed, so that one that the cluster has given up is given up
	// here.
	keysFresh = 10 * time.Minute
	// keysStale is how old they may be if they cannot be fetched.
	keysStale = time.Hour
)

// keySet is the keys of one issuer, fetched when they are needed. It may be used
// concurrently.
type keySet struct {
	fetch func(context.Context) ([]byte, error)
	now   atomic.Pointer[fetched]

	// turn holds one token; whoever has it may fetch, and uses what follows.
	turn chan struct{}
	// tried is when the last fetch ended, and failed what came of it.
	tried  time.Time
	failed error
}

// fetched is a key set at a time.
type fetched struct {
	keys map[string]any // public keys by ID
	at   time.Time
}

func newKeySet(fetch func(context.Context) ([]byte, error)) *keySet {
	s := &keySet{fetch: fetch, turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	return s
}

// key returns the public key with the ID. It returns node.ErrRefused (wrapped)
// when the issuer has none.
func (s *keySet) key(ctx context.Context, id string) (any, error) {
	if id == "" {
		return nil, fmt.Errorf("%w: the token does not say which key it is signed with", node.ErrRefused)
	}
	if key, ok := s.now.Load().find(id, keysFresh); ok {
		return key, nil
	}
	select {
	case <-s.turn:
		defer func() { s.turn <- struct{}{} }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	// Somebody else may have fetched while this one waited.
	if key, ok := s.now.Load().find(id, keysFresh); ok {
		return key, nil
	}
	if s.tried.IsZero() || time.Since(s.tried) >= fetchPause {
		s.failed = s.refresh(ctx)
		s.tried = time.Now()
	}
	if key, ok := s.now.Load().find(id, keysStale); ok {
		return key, nil
	}
	if s.failed != nil {
		return nil, s.failed
	}
	return nil, fmt.Errorf("%w: the token is signed with a key that the cluster's issuer does not have", node.ErrRefused)
}

// find looks for a key in a set that is not older than a limit.
func (f *fetched) find(id string, limit time.Duration) (any, bool) {
	if f == nil || time.Since(f.at) >= limit {
		return nil, false
	}
	key, ok := f.keys[id]
	return key, ok
}

// refresh fetches the keys. It does not end with whoever is the first to need
// them: a stranger who hangs up would keep everybody from having them.
func (s *keySet) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
	defer cancel()
	at := time.Now()
	data, err := s.fetch(ctx)
	if err != nil {
		return fmt.Errorf("fetching the keys of the cluster's issuer: %w", err)
	}
	keys, err := readKeys(data)
	if err != nil {
		return fmt.Errorf("reading the keys of the cluster's issuer: %w", err)
	}
	s.now.Store(&fetched{keys: keys, at: at})
	return nil
}

// readKeys takes the keys out of a key set (RFC 7517, section 5) that verify
// signatures and have an ID. Others, and of two with one ID both, are left out.
func readKeys(data []byte) (map[string]any, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, errors.New("not a JSON Web Key Set")
	}
	keys, twice := make(map[string]any), make(map[string]bool)
	for _, raw := range set.Keys {
		var key jose.JSONWebKey
		if key.UnmarshalJSON(raw) != nil || key.KeyID == "" || key.Use != "" && key.Use != "sig" {
			continue
		}
		if _, known := keys[key.KeyID]; known {
			twice[key.KeyID] = true
		}
		switch key.Key.(type) {
		case *rsa.PublicKey, *ecdsa.PublicKey:
			keys[key.KeyID] = key.Key
		}
	}
	for id := range twice {
		delete(keys, id)
	}
	if len(keys) == 0 {
		return nil, errors.New("there is no key in it that could be used")
	}
	return keys, nil
}

// fetchFrom fetches a key set over HTTPS, with the authorities in a PEM file or
// the system's. Redirects are not followed, and no error has any of the answer.
func fetchFrom(url, caPath string) (func(context.Context) ([]byte, error), error) {
	client, err := newHTTPClient(caPath)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			return nil, fmt.Errorf("jwks_url: %w", err)
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, fmt.Errorf("jwks_url: %w", err)
		}
		defer resp.Body.Close() //nolint:errcheck // it was read
		if resp.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("jwks_url: the answer is %d, want 200; redirects are not followed", resp.StatusCode)
		}
		data, err := io.ReadAll(io.LimitReader(resp.Body, maxKeySet+1))
		switch {
		case err != nil:
			return nil, fmt.Errorf("jwks_url: %w", err)
		case len(data) > maxKeySet:
			return nil, fmt.Errorf("jwks_url: the answer has more than %d bytes", maxKeySet)
		}
		return data, nil
	}, nil
}

func newHTTPClient(caPath string) (*http.Client, error) {
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if caPath == "" {
		// An image with nothing but the program has none.
		if own, err := x509.SystemCertPool(); err != nil || own.Equal(x509.NewCertPool()) {
			return nil, errors.New("jwks_ca_path: this system has no authorities of its own; name a PEM file with those that jwks_url is verified with")
		}
	} else {
		data, err := os.ReadFile(caPath)
		if err != nil {
			return nil, fmt.Errorf("jwks_ca_path: %w", err)
		}
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("jwks_ca_path: %s has no PEM certificate", caPath)
		}
	}
	return &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true,
			MaxIdleConns: 1, IdleConnTimeout: fetchTimeout,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       fetchTimeout,
	}, nil
}
