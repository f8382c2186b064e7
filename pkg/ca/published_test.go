package ca_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/pkg/registry"
)

// TestPublishedKeysExpire: keys that nested servers put into the bundle leave it
// when they have expired, and only then.
func TestPublishedKeysExpire(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		s := w.mustStart(w.config("a", w.diskKeys("a")))
		defer s.stop()
		now := time.Now()
		_, err := w.reg.AppendBundle(t.Context(), &registry.Bundle{
			JWTAuthorities: []registry.JWTAuthority{
				{KeyID: "jwt-1h", PKIX: []byte{1}, ExpiresAt: now.Add(time.Hour)}, {KeyID: "jwt-3h", PKIX: []byte{2}, ExpiresAt: now.Add(3 * time.Hour)},
				{KeyID: "jwt-forever", PKIX: []byte{3}},
			},
			WITAuthorities: []registry.WITAuthority{
				{KeyID: "wit-2h", PKIX: []byte{4}, ExpiresAt: now.Add(2 * time.Hour)}, {KeyID: "wit-4h", PKIX: []byte{5}, ExpiresAt: now.Add(4 * time.Hour)},
				{KeyID: "wit-forever", PKIX: []byte{6}},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		published := func() (out []string) {
			b := w.bundle()
			for _, a := range b.JWTAuthorities {
				if len(a.PKIX) == 1 {
					out = append(out, a.KeyID)
				}
			}
			for _, a := range b.WITAuthorities {
				out = append(out, a.KeyID)
			}
			slices.Sort(out)
			return out
		}
		for _, step := range []struct {
			at   time.Duration
			want []string
		}{
			{0, []string{"jwt-1h", "jwt-3h", "jwt-forever", "wit-2h", "wit-4h", "wit-forever"}},
			{59 * time.Minute, []string{"jwt-1h", "jwt-3h", "jwt-forever", "wit-2h", "wit-4h", "wit-forever"}},
			{90 * time.Minute, []string{"jwt-3h", "jwt-forever", "wit-2h", "wit-4h", "wit-forever"}},
			{150 * time.Minute, []string{"jwt-3h", "jwt-forever", "wit-4h", "wit-forever"}},
			{210 * time.Minute, []string{"jwt-forever", "wit-4h", "wit-forever"}},
			{270 * time.Minute, []string{"jwt-forever", "wit-forever"}},
		} {
			time.Sleep(time.Until(now.Add(step.at)))
			synctest.Wait()
			if diff := cmp.Diff(step.want, published()); diff != "" {
				t.Errorf("after %s (-want +got):\n%s", step.at, diff)
			}
		}
	})
}
