package keystest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/pkg/keys"
)

// Opener opens a manager. Called again it opens the same one again, as after a
// restart of the process; the first may still be open.
type Opener func(testing.TB) keys.Manager

// Run holds the managers that fresh makes, each a new empty one, against the
// contract.
func Run(t *testing.T, fresh func(testing.TB) Opener) {
	for name, test := range map[string]func(*testing.T, Opener){
		"Types":       types,
		"NotFound":    notFound,
		"Replace":     replace,
		"Delete":      remove,
		"List":        list,
		"IDs":         ids,
		"Canceled":    canceled,
		"Concurrency": concurrency,
		"Restart":     restart,
		"Opaque":      opaque,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, fresh(t))
		})
	}
}

// Sign proves that a key's halves belong together.
func sign(k keys.Key) error {
	digest := sha256.Sum256([]byte(k.ID))
	sig, err := k.Signer.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return err
	}
	switch pub := k.Signer.Public().(type) {
	case *ecdsa.PublicKey:
		if !ecdsa.VerifyASN1(pub, digest[:], sig) {
			return errors.New("the ECDSA signature does not verify")
		}
		return nil
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(pub, crypto.SHA256, digest[:], sig)
	default:
		return fmt.Errorf("public key of type %T", pub)
	}
}

func generate(t *testing.T, m keys.Manager, id string, kind keys.Type) keys.Key {
	t.Helper()
	k, err := m.Generate(t.Context(), id, kind)
	if err != nil {
		t.Fatalf("Generate(%q, %s): %v", id, kind, err)
	}
	return k
}

func get(t *testing.T, m keys.Manager, id string) keys.Key {
	t.Helper()
	k, err := m.Get(t.Context(), id)
	if err != nil {
		t.Fatalf("Get(%q): %v", id, err)
	}
	return k
}

func same(a, b keys.Key) bool {
	pub, ok := a.Signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && a.ID == b.ID && a.Type == b.Type && pub.Equal(b.Signer.Public())
}

func types(t *testing.T, open Opener) {
	m := open(t)
	for _, kind := range []keys.Type{keys.ECP256, keys.ECP384, keys.RSA2048, keys.RSA4096} {
		if kind == keys.RSA4096 && testing.Short() {
			continue
		}
		k := generate(t, m, "key-"+kind.String(), kind)
		if k.ID != "key-"+kind.String() || k.Type != kind {
			t.Errorf("generated key is %q of type %s", k.ID, k.Type)
		}
		if actual, err := keys.TypeOf(k.Signer.Public()); err != nil || actual != kind {
			t.Errorf("asked for %s, got %s (%v)", kind, actual, err)
		}
		if err := sign(k); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		again := get(t, m, k.ID)
		if !same(k, again) {
			t.Errorf("%s: Get returns another key", kind)
		}
		if err := sign(again); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
	}
	if _, err := m.Generate(t.Context(), "none", keys.Type(0)); err == nil {
		t.Error("a key of type 0 was generated")
	}
	if _, err := m.Get(t.Context(), "none"); !errors.Is(err, keys.ErrNotFound) {
		t.Errorf("after a failed Generate, Get returns %v", err)
	}
}

func notFound(t *testing.T, open Opener) {
	m := open(t)
	if _, err := m.Get(t.Context(), "missing"); !errors.Is(err, keys.ErrNotFound) {
		t.Errorf("Get returns %v, want ErrNotFound", err)
	}
	if err := m.Delete(t.Context(), "missing"); err != nil {
		t.Errorf("Delete of a missing key: %v", err)
	}
	if m.Name() == "" {
		t.Error("Name is empty")
	}
}

// replace: a key that was handed out goes on working.
func replace(t *testing.T, open Opener) {
	m := open(t)
	first := generate(t, m, "slot", keys.ECP256)
	second := generate(t, m, "slot", keys.ECP384)
	if same(first, second) {
		t.Fatal("the second Generate returned the first key")
	}
	if !same(second, get(t, m, "slot")) {
		t.Error("Get does not return the newest key")
	}
	for _, k := range []keys.Key{first, second} {
		if err := sign(k); err != nil {
			t.Errorf("%s: %v", k.Type, err)
		}
	}
}

func remove(t *testing.T, open Opener) {
	m := open(t)
	gone, kept := generate(t, m, "gone", keys.ECP256), generate(t, m, "kept", keys.ECP256)
	for range 2 {
		if err := m.Delete(t.Context(), "gone"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Get(t.Context(), "gone"); !errors.Is(err, keys.ErrNotFound) {
		t.Errorf("Get of a deleted key returns %v", err)
	}
	if !same(kept, get(t, m, "kept")) {
		t.Error("the other key is not what it was")
	}
	if err := sign(gone); err != nil {
		t.Errorf("a key handed out before Delete: %v", err)
	}
}

func listed(t *testing.T, m keys.Manager) (ids []string) {
	t.Helper()
	all, err := m.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range all {
		ids = append(ids, k.ID)
		if err := sign(k); err != nil {
			t.Errorf("%q: %v", k.ID, err)
		}
	}
	return ids
}

func list(t *testing.T, open Opener) {
	m := open(t)
	if got := listed(t, m); len(got) != 0 {
		t.Fatalf("a new manager has keys %q", got)
	}
	for _, id := range []string{"b", "c", "a-2", "a"} {
		generate(t, m, id, keys.ECP256)
	}
	if diff := cmp.Diff([]string{"a", "a-2", "b", "c"}, listed(t, m)); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
}

func ids(t *testing.T, open Opener) {
	m := open(t)
	for _, id := range []string{
		"", ".", "..", ".hidden", "a/b", "../a", "a b", "a\x00b", "ä", `a\b`, "a\n", strings.Repeat("x", keys.MaxID+1),
	} {
		if _, err := m.Generate(t.Context(), id, keys.ECP256); !errors.Is(err, keys.ErrInvalidID) {
			t.Errorf("Generate(%q) returns %v, want ErrInvalidID", id, err)
		}
		if _, err := m.Get(t.Context(), id); err == nil {
			t.Errorf("Get(%q) returns a key", id)
		}
	}
	for _, id := range []string{"a", "A.b-c_9", strings.Repeat("x", keys.MaxID-1), strings.Repeat("x", keys.MaxID)} {
		generate(t, m, id, keys.ECP256)
	}
}

func canceled(t *testing.T, open Opener) {
	m := open(t)
	kept := generate(t, m, "slot", keys.ECP256)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Generate(ctx, "slot", keys.ECP256); !errors.Is(err, context.Canceled) {
		t.Errorf("Generate returns %v, want context.Canceled", err)
	}
	if !same(kept, get(t, m, "slot")) {
		t.Error("a canceled Generate replaced the key")
	}
}

// concurrency wants every method to be safe beside every other, and no key to
// be lost.
func concurrency(t *testing.T, open Opener) {
	m := open(t)
	shared := generate(t, m, "shared", keys.ECP256)
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			own := fmt.Sprintf("own-%d", worker)
			for range 10 {
				if err := turn(t.Context(), m, own, shared); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	var want []string
	for worker := range 8 {
		want = append(want, fmt.Sprintf("own-%d", worker))
	}
	want = append(want, "shared")
	if diff := cmp.Diff(want, listed(t, m)); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
}

// turn is one round of one worker, who alone uses the id own.
func turn(ctx context.Context, m keys.Manager, own string, shared keys.Key) error {
	made, err := m.Generate(ctx, own, keys.ECP256)
	if err != nil {
		return err
	}
	got, err := m.Get(ctx, own)
	if err != nil {
		return err
	}
	if !same(made, got) {
		return fmt.Errorf("%q: Get returns another key than Generate did", own)
	}
	for _, k := range []keys.Key{got, shared} {
		if err := sign(k); err != nil {
			return err
		}
	}
	all, err := m.List(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(k keys.Key) bool { return same(k, made) }) {
		return fmt.Errorf("%q: not listed", own)
	}
	if err := m.Delete(ctx, own); err != nil {
		return err
	}
	_, err = m.Generate(ctx, own, keys.ECP256)
	return err
}

// restart wants Durable to be the truth.
func restart(t *testing.T, open Opener) {
	m := open(t)
	want := map[string]keys.Key{}
	for _, kind := range []keys.Type{keys.ECP256, keys.ECP384, keys.RSA2048} {
		generate(t, m, kind.String(), keys.ECP256)
		want[kind.String()] = generate(t, m, kind.String(), kind)
	}
	generate(t, m, "gone", keys.ECP256)
	if err := m.Delete(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}

	again := open(t)
	if !m.Durable() {
		if got := listed(t, again); len(got) != 0 {
			t.Errorf("Durable is false and %q survived", got)
		}
		return
	}
	if diff := cmp.Diff([]string{"ec-p256", "ec-p384", "rsa-2048"}, listed(t, again)); diff != "" {
		t.Errorf("List after the restart (-want +got):\n%s", diff)
	}
	for id, k := range want {
		if !same(k, get(t, again, id)) {
			t.Errorf("%q is another key after the restart", id)
		}
	}
}

// opaque: the private half can be neither taken out nor printed.
func opaque(t *testing.T, open Opener) {
	k := generate(t, open(t), "slot", keys.ECP256)
	if _, ok := k.Signer.(*ecdsa.PrivateKey); ok {
		t.Error("the Signer is the private key itself")
	}
	if k.Type.String() != "ec-p256" {
		t.Errorf("type is %s", k.Type)
	}
}
