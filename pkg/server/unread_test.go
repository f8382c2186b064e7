package server

import (
	"context"
	"testing"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/credence-id/credence/pkg/registry"
)

// S07: answers that a stranger asks for and does not take are held in memory. A
// bundle is the largest.
func TestS07_UnreadAnswersAreBounded(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	const large = 200 << 10
	if _, err := r.inside.registry.UpdateBundle(t.Context(), r.inside.roots.td, func(b *registry.Bundle) error {
		b.JWTAuthorities = append(b.JWTAuthorities, registry.JWTAuthority{KeyID: "large", PKIX: make([]byte, large)})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	client := bundlev1.NewBundleClient(r.dial(t, nil))
	soon(t, "the large bundle", func(ctx context.Context) bool {
		b, err := client.GetBundle(ctx, &bundlev1.GetBundleRequest{})
		return err == nil && len(b.GetJwtAuthorities()) == 2
	})

	a := attack(t, r)
	if err := a.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
		t.Fatal(err)
	}
	const asked = 100
	for i := range uint32(asked) {
		err := a.WriteHeaders(http2.HeadersFrameParam{
			StreamID: 2*i + 1, BlockFragment: a.blockFor(t, bundlev1.Bundle_GetBundle_FullMethodName), EndHeaders: true,
		})
		if err == nil {
			err = a.WriteData(2*i+1, true, make([]byte, 5))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	refused, answered := a.outcomes(t, asked)
	if most := strangerUnread/large + 1; answered > most || refused < asked-most {
		t.Errorf("%d answers of %d bytes are held and %d refused, want at most %d held", answered, large, refused, most)
	}

	// Whoever reads gets as many as it likes.
	for i := range 3 * strangerBytes / large {
		if _, err := client.GetBundle(t.Context(), &bundlev1.GetBundleRequest{}); err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
	}
}

// outcomes reads how n calls begin to end: with a status alone, or with the
// headers of an answer.
func (a *attacker) outcomes(t *testing.T, n int) (refused, answered int) {
	t.Helper()
	if err := a.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	a.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for refused+answered < n {
		f, err := a.ReadFrame()
		if err != nil {
			t.Fatalf("after %d refused and %d answered: %v", refused, answered, err)
		}
		h, ok := f.(*http2.MetaHeadersFrame)
		switch {
		case !ok:
		case h.StreamEnded():
			refused++
		default:
			answered++
		}
	}
	return refused, answered
}
