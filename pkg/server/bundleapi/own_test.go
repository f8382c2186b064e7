package bundleapi

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/credence-id/credence/pkg/registry"
)

// The store may be away: the bundle is in memory.
func TestGetBundle(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.Away.Store(true)
	got, err := f.GetBundle(local(t), &bundlev1.GetBundleRequest{})
	if err != nil {
		t.Fatal(err)
	}
	own, _ := f.Index.Bundle(td)
	if diff := cmp.Diff(own.ToWire(), got, protocmp.Transform()); diff != "" || len(got.GetJwtAuthorities()) != 1 {
		t.Errorf("(-want +got):\n%s", diff)
	}
	none := New(Config{TrustDomain: td, Own: func() *registry.Bundle { return nil }, Fresh: func(context.Context) error { return nil }})
	if _, err := none.GetBundle(local(t), &bundlev1.GetBundleRequest{OutputMask: &types.BundleMask{}}); codeOf(err) != codes.NotFound || err.Error() != "bundle not found" {
		t.Errorf("no bundle: got %v, want NotFound", err)
	}
}

func TestAppendBundle(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.Slow.Store(true)
	before := f.cfg.Own().ToWire()
	add := wireBundle(t, "", 2)
	for _, k := range add.JwtAuthorities {
		k.KeyId = "new-" + k.KeyId
	}
	for _, k := range add.WitAuthorities {
		k.KeyId = "new-" + k.KeyId
	}
	want := &types.Bundle{
		TrustDomain: "example.org", RefreshHint: before.RefreshHint, SequenceNumber: before.SequenceNumber + 1,
		X509Authorities: append(before.X509Authorities, add.X509Authorities...),
		JwtAuthorities:  append(before.JwtAuthorities, add.JwtAuthorities...),
		WitAuthorities:  append(before.WitAuthorities, add.WitAuthorities...),
	}
	req := &bundlev1.AppendBundleRequest{X509Authorities: add.X509Authorities, JwtAuthorities: add.JwtAuthorities, WitAuthorities: add.WitAuthorities}
	for range 2 { // Twice is once.
		got, err := f.AppendBundle(local(t), req)
		if diff := cmp.Diff(want, got, protocmp.Transform()); err != nil || diff != "" {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
		if diff := cmp.Diff(want, f.cfg.Own().ToWire(), protocmp.Transform()); diff != "" {
			t.Errorf("what is served then (-want +got):\n%s", diff)
		}
	}
	for name, tc := range map[string]struct {
		req     *bundlev1.AppendBundleRequest
		message string
	}{
		"nothing":         {&bundlev1.AppendBundleRequest{}, "no authorities to append"},
		"certificate":     {&bundlev1.AppendBundleRequest{X509Authorities: []*types.X509Certificate{{Asn1: []byte("x")}}}, "failed to convert X.509 authority: unable to parse X.509 authority: x509: malformed certificate"},
		"no certificate":  {&bundlev1.AppendBundleRequest{X509Authorities: []*types.X509Certificate{{}}}, "failed to convert X.509 authority: an authority is empty"},
		"JWT key":         {&bundlev1.AppendBundleRequest{JwtAuthorities: []*types.JWTKey{{KeyId: "x"}}}, "failed to convert JWT authority: key \"x\" is not a PKIX public key"},
		"no JWT key ID":   {&bundlev1.AppendBundleRequest{JwtAuthorities: []*types.JWTKey{{PublicKey: newKey(t)}}}, "failed to convert JWT authority: missing key ID"},
		"no WIT key ID":   {&bundlev1.AppendBundleRequest{WitAuthorities: []*types.WITKey{{PublicKey: newKey(t)}}}, "failed to convert WIT authority: missing key ID"},
		"key ID is taken": {&bundlev1.AppendBundleRequest{JwtAuthorities: []*types.JWTKey{{KeyId: "jwta", PublicKey: newKey(t)}}}, "failed to append bundle: jwt_authorities: key ID \"jwta\" is that of another key of the bundle"},
	} {
		if got, err := f.AppendBundle(local(t), tc.req); codeOf(err) != codes.InvalidArgument || err.Error() != tc.message {
			t.Errorf("%s: %v, %v, want %q", name, got, err, tc.message)
		}
	}
	if diff := cmp.Diff(want, f.cfg.Own().ToWire(), protocmp.Transform()); diff != "" {
		t.Errorf("after refusals (-want +got):\n%s", diff)
	}
}

func TestPublishAuthorities(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	own := f.cfg.Own().ToWire()
	jwt := &types.JWTKey{KeyId: "down-jwt", PublicKey: newKey(t), ExpiresAt: 1900000001}
	wit := &types.WITKey{KeyId: "down-wit", PublicKey: newKey(t), ExpiresAt: 1900000002}
	for range 2 {
		gotJWT, err := f.PublishJWTAuthority(local(t), &bundlev1.PublishJWTAuthorityRequest{JwtAuthority: jwt})
		if diff := cmp.Diff(append(own.JwtAuthorities, jwt), gotJWT.GetJwtAuthorities(), protocmp.Transform()); err != nil || diff != "" {
			t.Errorf("JWT: %v (-want +got):\n%s", err, diff)
		}
		gotWIT, err := f.PublishWITAuthority(local(t), &bundlev1.PublishWITAuthorityRequest{WitAuthority: wit})
		if diff := cmp.Diff(append(own.WitAuthorities, wit), gotWIT.GetWitAuthorities(), protocmp.Transform()); err != nil || diff != "" {
			t.Errorf("WIT: %v (-want +got):\n%s", err, diff)
		}
	}
	for message, err := range map[string]error{
		"missing JWT authority": func() error {
			_, err := f.PublishJWTAuthority(local(t), &bundlev1.PublishJWTAuthorityRequest{})
			return err
		}(),
		"invalid JWT authority: jwt_authorities: missing key ID": func() error {
			_, err := f.PublishJWTAuthority(local(t), &bundlev1.PublishJWTAuthorityRequest{JwtAuthority: &types.JWTKey{PublicKey: newKey(t)}})
			return err
		}(),
		// A downstream server does not take the place of another's key.
		"failed to publish JWT key: jwt_authorities: key ID \"jwta\" is that of another key of the bundle": func() error {
			_, err := f.PublishJWTAuthority(local(t), &bundlev1.PublishJWTAuthorityRequest{JwtAuthority: &types.JWTKey{KeyId: "jwta", PublicKey: newKey(t)}})
			return err
		}(),
		"missing WIT authority": func() error {
			_, err := f.PublishWITAuthority(local(t), &bundlev1.PublishWITAuthorityRequest{})
			return err
		}(),
		"failed to publish WIT key: wit_authorities: key ID \"down-jwt\" is that of another key of the bundle": func() error {
			_, err := f.PublishWITAuthority(local(t), &bundlev1.PublishWITAuthorityRequest{WitAuthority: &types.WITKey{KeyId: "down-jwt", PublicKey: newKey(t)}})
			return err
		}(),
	} {
		if codeOf(err) != codes.InvalidArgument || err.Error() != message {
			t.Errorf("want %q, got %v", message, err)
		}
	}
}

// Every change asked for is on record, with who asked and what is trusted now.
func TestChangesAreAudited(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	given := wireBundle(t, "other.test", 1)
	f.create(t, nil, given, given, &types.Bundle{TrustDomain: "BAD"})
	f.update(t, nil, nil, given)
	f.set(t, nil, given)
	f.delete0(t, "other.test")
	for _, call := range []func() error{
		func() error {
			_, err := f.AppendBundle(local(t), &bundlev1.AppendBundleRequest{X509Authorities: given.X509Authorities})
			return err
		},
		func() error {
			_, err := f.PublishJWTAuthority(local(t), &bundlev1.PublishJWTAuthorityRequest{JwtAuthority: &types.JWTKey{KeyId: "down", PublicKey: newKey(t)}})
			return err
		},
	} {
		if err := call(); err != nil {
			t.Fatal(err)
		}
	}
	log := f.Log.String()
	for _, want := range []string{
		"action=bundle.create", "action=bundle.update", "action=bundle.set", "action=bundle.delete", "mode=RESTRICT",
		"action=bundle.append", "action=bundle.publish_jwt", "caller=uid:0", "caller_kind=local", "subject=other.test",
		"subject=example.org", "outcome=done", "outcome=refused", "x509_authority_sha256=", "jwt_authority_key_id=down",
		"err=\"bundle already exists\"",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("no %q in the log:\n%s", want, log)
		}
	}
	if intents, outcomes := strings.Count(log, "audit intent"), strings.Count(log, "audit outcome"); intents != 7 || outcomes != 8 {
		t.Errorf("want 7 intents and 8 outcomes (one item could not be read), got %d and %d:\n%s", intents, outcomes, log)
	}
}
