package bundleapi

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/credence-id/credence/pkg/registry"
)

// answer is the outcome of one item, whatever the call.
type answer struct {
	code    codes.Code
	message string
	bundle  *types.Bundle
}

type result interface {
	GetStatus() *types.Status
	GetBundle() *types.Bundle
}

func answers[R result](t testing.TB, results []R, err error) (out []answer) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		out = append(out, answer{codes.Code(r.GetStatus().GetCode()), r.GetStatus().GetMessage(), r.GetBundle()})
	}
	return out
}

func (f *fixture) create(t testing.TB, mask *types.BundleMask, bundles ...*types.Bundle) []answer {
	t.Helper()
	resp, err := f.BatchCreateFederatedBundle(local(t), &bundlev1.BatchCreateFederatedBundleRequest{Bundle: bundles, OutputMask: mask})
	return answers(t, resp.GetResults(), err)
}

func (f *fixture) set(t testing.TB, mask *types.BundleMask, bundles ...*types.Bundle) []answer {
	t.Helper()
	resp, err := f.BatchSetFederatedBundle(local(t), &bundlev1.BatchSetFederatedBundleRequest{Bundle: bundles, OutputMask: mask})
	return answers(t, resp.GetResults(), err)
}

func (f *fixture) update(t testing.TB, input, output *types.BundleMask, bundles ...*types.Bundle) []answer {
	t.Helper()
	resp, err := f.BatchUpdateFederatedBundle(local(t), &bundlev1.BatchUpdateFederatedBundleRequest{
		Bundle: bundles, InputMask: input, OutputMask: output,
	})
	return answers(t, resp.GetResults(), err)
}

func (f *fixture) get(t testing.TB, name string) *types.Bundle {
	t.Helper()
	b, err := f.GetFederatedBundle(local(t), &bundlev1.GetFederatedBundleRequest{TrustDomain: name})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const noUpper = "trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores"

func TestGetFederatedBundle(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.create(t, nil, wireBundle(t, "other.test", 1))
	for name, tc := range map[string]struct {
		td      string
		away    bool
		code    codes.Code
		message string
	}{
		"known":      {td: "other.test"},
		"as an ID":   {td: "spiffe://other.test"},
		"unknown":    {td: "nobody.test", code: codes.NotFound, message: "bundle not found"},
		"malformed":  {td: "BAD", code: codes.InvalidArgument, message: "trust domain argument is not valid: " + noUpper},
		"none":       {code: codes.InvalidArgument, message: "trust domain argument is not valid: trust domain is missing"},
		"own":        {td: "example.org", code: codes.InvalidArgument, message: "getting a federated bundle for the server's own trust domain is not allowed"},
		"store away": {td: "other.test", away: true, code: codes.Unavailable, message: "store: unavailable"},
	} {
		f.Away.Store(tc.away)
		got, err := f.GetFederatedBundle(local(t), &bundlev1.GetFederatedBundleRequest{TrustDomain: tc.td})
		if codeOf(err) != tc.code || err != nil && err.Error() != tc.message || err == nil && got.TrustDomain != "other.test" {
			t.Errorf("%s: %v, %v, want %v %q", name, got, err, tc.code, tc.message)
		}
	}
}

// The statuses of items, one call after another over the same store.
func TestBatchStatuses(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	given := wireBundle(t, "other.test", 2)
	with := func(change func(*types.Bundle)) *types.Bundle {
		b := proto.CloneOf(given)
		change(b)
		return b
	}
	named := func(name string) *types.Bundle { return with(func(b *types.Bundle) { b.TrustDomain = name }) }
	type want struct {
		code    codes.Code
		message string
	}
	ok := want{codes.OK, "OK"}
	bad := func(format string, args ...any) want {
		return want{codes.InvalidArgument, fmt.Sprintf(format, args...)}
	}
	malformed := map[*types.Bundle]want{
		named("example.org"): bad("%%s a federated bundle for the server's own trust domain is not allowed"),
		named("BAD"):         bad("trust domain argument is not valid: %s", noUpper),
		named(""):            bad("trust domain argument is not valid: trust domain is missing"),
		with(func(b *types.Bundle) { b.X509Authorities[0].Asn1 = []byte("x") }): bad(
			"failed to convert bundle: x509_authorities: unable to parse X.509 authority: x509: malformed certificate"),
		with(func(b *types.Bundle) { b.JwtAuthorities[0].PublicKey = []byte("x") }): bad(
			"failed to convert bundle: jwt_authorities: key \"jwta\" is not a PKIX public key"),
		with(func(b *types.Bundle) { b.JwtAuthorities[0].KeyId = "" }): bad("failed to convert bundle: jwt_authorities: missing key ID"),
		with(func(b *types.Bundle) { b.WitAuthorities[0].KeyId = "jwta" }): bad(
			"failed to convert bundle: wit_authorities: key ID \"jwta\" is that of another key of the bundle"),
		with(func(b *types.Bundle) { b.RefreshHint = -1 }): bad("failed to convert bundle: refresh_hint: must be between 0 and 315360000 seconds"),
	}
	check := func(name string, got []answer, wants ...want) {
		t.Helper()
		if len(got) != len(wants) {
			t.Fatalf("%s: want %d results, got %d", name, len(wants), len(got))
		}
		for i, w := range wants {
			if got[i].code != w.code || got[i].message != w.message || (got[i].code == codes.OK) != (got[i].bundle != nil) {
				t.Errorf("%s, item %d: want %v %q, got %v %q, %v", name, i, w.code, w.message, got[i].code, got[i].message, got[i].bundle)
			}
		}
	}
	for b, w := range malformed {
		check("create", f.create(t, nil, b), want{w.code, strings.ReplaceAll(w.message, "%s", "creating")})
		check("set", f.set(t, nil, b), want{w.code, strings.ReplaceAll(w.message, "%s", "setting")})
		check("update", f.update(t, nil, nil, b), want{w.code, strings.ReplaceAll(w.message, "%s", "updating")})
	}
	exists, missing := want{codes.AlreadyExists, "bundle already exists"}, want{codes.NotFound, "bundle not found"}
	check("update of none", f.update(t, nil, nil, given), missing)
	check("create", f.create(t, nil, given, given, named("third.test"), nil), ok, exists, ok, bad("trust domain argument is not valid: trust domain is missing"))
	check("create again", f.create(t, nil, given), exists)
	check("update", f.update(t, nil, nil, given, named("nobody.test"), given), ok, missing, ok)
	check("set", f.set(t, nil, given, named("fourth.test")), ok, ok)
	if diff := cmp.Diff(given, f.get(t, "other.test"), protocmp.Transform()); diff != "" {
		t.Errorf("in the end (-want +got):\n%s", diff)
	}
	count, err := f.CountBundles(local(t), &bundlev1.CountBundlesRequest{})
	if err != nil || count.Count != 4 {
		t.Errorf("count: %v, %v, want 4, the server's own among them", count, err)
	}
}

// masks are the masks that name one field each, by field.
func masks() map[protoreflect.Name]*types.BundleMask {
	out := make(map[protoreflect.Name]*types.BundleMask)
	fields := (&types.BundleMask{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		mask := &types.BundleMask{}
		mask.ProtoReflect().Set(fields.Get(i), protoreflect.ValueOfBool(true))
		out[fields.Get(i).Name()] = mask
	}
	return out
}

// only is the bundle's trust domain and one field of it.
func only(t testing.TB, b *types.Bundle, field protoreflect.Name) *types.Bundle {
	t.Helper()
	out := &types.Bundle{TrustDomain: b.TrustDomain}
	fd := b.ProtoReflect().Descriptor().Fields().ByName(field)
	if !b.ProtoReflect().Has(fd) {
		t.Fatalf("%s has no value", field)
	}
	out.ProtoReflect().Set(fd, b.ProtoReflect().Get(fd))
	return out
}

// S15: every call answers with what its output mask names, field by field, and an
// update sets what its input mask names, and nothing else.
func TestS15_BundleMask(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	given := wireBundle(t, "other.test", 2)
	if n := len(masks()); n != given.ProtoReflect().Descriptor().Fields().Len()-1 {
		t.Fatalf("want a mask for each field but the trust domain, got %d", n)
	}
	f.set(t, nil, given)
	own := f.cfg.Own().ToWire()
	for field, mask := range masks() {
		want := only(t, given, field)
		listed, err := f.ListFederatedBundles(local(t), &bundlev1.ListFederatedBundlesRequest{OutputMask: mask})
		if err != nil || len(listed.Bundles) != 1 {
			t.Fatalf("list: %v, %v", listed, err)
		}
		single, err := f.GetFederatedBundle(local(t), &bundlev1.GetFederatedBundleRequest{TrustDomain: "other.test", OutputMask: mask})
		if err != nil {
			t.Fatal(err)
		}
		fresh := proto.CloneOf(given)
		fresh.TrustDomain = "new-" + strings.ReplaceAll(string(field), "_", "-") + ".test"
		for name, got := range map[string]*types.Bundle{
			"list": listed.Bundles[0], "get": single,
			"set":    f.set(t, mask, given)[0].bundle,
			"update": f.update(t, nil, mask, given)[0].bundle,
			"create": func() *types.Bundle {
				b := f.create(t, mask, fresh)[0].bundle
				f.delete0(t, fresh.TrustDomain)
				b.TrustDomain = "other.test"
				return b
			}(),
		} {
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("%s with %s (-want +got):\n%s", name, field, diff)
			}
		}
		got, err := f.GetBundle(local(t), &bundlev1.GetBundleRequest{OutputMask: mask})
		if diff := cmp.Diff(only(t, own, field), got, protocmp.Transform()); err != nil || diff != "" {
			t.Errorf("GetBundle with %s: %v (-want +got):\n%s", field, err, diff)
		}
		got, err = f.AppendBundle(local(t), &bundlev1.AppendBundleRequest{X509Authorities: own.X509Authorities, OutputMask: mask})
		if diff := cmp.Diff(only(t, own, field), got, protocmp.Transform()); err != nil || diff != "" {
			t.Errorf("AppendBundle with %s: %v (-want +got):\n%s", field, err, diff)
		}

		changed := wireBundle(t, "other.test", 1)
		changed.RefreshHint, changed.SequenceNumber = 161, 162
		expect := proto.CloneOf(given)
		fd := expect.ProtoReflect().Descriptor().Fields().ByName(field)
		expect.ProtoReflect().Set(fd, changed.ProtoReflect().Get(fd))
		if got := f.update(t, mask, nil, changed)[0].bundle; cmp.Diff(expect, got, protocmp.Transform()) != "" {
			t.Errorf("update of %s (-want +got):\n%s", field, cmp.Diff(expect, got, protocmp.Transform()))
		}
		if diff := cmp.Diff(expect, f.get(t, "other.test"), protocmp.Transform()); diff != "" {
			t.Errorf("after the update of %s (-want +got):\n%s", field, diff)
		}
		f.set(t, nil, given)
	}
	// An input mask that leaves a field out leaves it unread.
	broken := proto.CloneOf(given)
	broken.X509Authorities[0].Asn1, broken.RefreshHint = []byte("x"), 5
	if got := f.update(t, &types.BundleMask{RefreshHint: true}, &types.BundleMask{RefreshHint: true}, broken)[0]; got.code != codes.OK || got.bundle.RefreshHint != 5 {
		t.Errorf("a field that is not asked for is broken: %+v", got)
	}
}

func (f *fixture) delete0(t testing.TB, name string) {
	t.Helper()
	resp, err := f.BatchDeleteFederatedBundle(local(t), &bundlev1.BatchDeleteFederatedBundleRequest{TrustDomains: []string{name}})
	if err != nil || resp.Results[0].Status.Code != 0 {
		t.Fatalf("deleting %s: %v, %v", name, resp, err)
	}
}

func (f *fixture) pages(t testing.TB, size int32, mask *types.BundleMask) (names []string, sizes []int) {
	t.Helper()
	for token := ""; ; {
		resp, err := f.ListFederatedBundles(local(t), &bundlev1.ListFederatedBundlesRequest{PageSize: size, PageToken: token, OutputMask: mask})
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range resp.Bundles {
			names = append(names, b.TrustDomain)
		}
		sizes = append(sizes, len(resp.Bundles))
		if n := proto.Size(resp); n > maxMessage+64<<10 {
			t.Errorf("a page of %d bytes", n)
		}
		if token = resp.NextPageToken; token == "" {
			return names, sizes
		}
	}
}

func TestListFederatedBundles(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if names, sizes := f.pages(t, 2, nil); len(names) != 0 || len(sizes) != 1 {
		t.Errorf("no bundle: got %v in pages of %v", names, sizes)
	}
	var want []string
	for i := range 7 {
		// The server's own name is in the middle of them.
		name := fmt.Sprintf("%c.test", 'b'+i)
		want = append(want, name)
		f.create(t, nil, &types.Bundle{TrustDomain: name})
	}
	for size, pages := range map[int32][]int{-1: {7}, 0: {7}, 1: {1, 1, 1, 1, 1, 1, 1}, 3: {3, 3, 1}, 6: {6, 1}, 7: {7}, 8: {7}, math.MaxInt32: {7}} {
		names, sizes := f.pages(t, size, nil)
		if diff := cmp.Diff(want, names) + cmp.Diff(pages, sizes); diff != "" {
			t.Errorf("page size %d (-want +got):\n%s", size, diff)
		}
	}
	for _, token := range []string{"BAD TOKEN", strings.Repeat("x", 300)} {
		if resp, err := f.ListFederatedBundles(local(t), &bundlev1.ListFederatedBundlesRequest{PageToken: token}); codeOf(err) != codes.InvalidArgument {
			t.Errorf("token %.20q: %v, %v", token, resp, err)
		}
	}
	f.Away.Store(true)
	if _, err := f.ListFederatedBundles(local(t), &bundlev1.ListFederatedBundlesRequest{}); codeOf(err) != codes.Unavailable {
		t.Errorf("store away: %v", err)
	}
	if _, err := f.CountBundles(local(t), &bundlev1.CountBundlesRequest{}); codeOf(err) != codes.Unavailable {
		t.Errorf("store away: %v", err)
	}
}

// S12: no page outgrows what clients take, whatever size they ask for, and no
// memory is made for what is not there.
func TestS12_BundlePageIsCapped(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const n = 20
	large := &registry.Bundle{X509Authorities: []registry.X509Authority{{DER: make([]byte, 400<<10)}}}
	var updates []registry.BundleUpdate
	for i := range n {
		updates = append(updates, registry.BundleUpdate{
			TrustDomain: spiffeid.RequireTrustDomainFromString(fmt.Sprintf("large%d.test", i)),
			Change:      func(*registry.Bundle) (*registry.Bundle, error) { return large, nil },
		})
	}
	for _, r := range f.Registry.UpdateBundles(t.Context(), updates) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	for _, size := range []int32{0, math.MaxInt32} {
		if names, sizes := f.pages(t, size, nil); len(names) != n || len(sizes) != 3 {
			t.Errorf("page size %d: %d bundles in pages of %v", size, len(names), sizes)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 10 {
		f.pages(t, math.MaxInt32, &types.BundleMask{RefreshHint: true})
	}
	runtime.ReadMemStats(&after)
	// Other tests run beside this one; 2³¹ of anything would still stand out.
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<30 {
		t.Errorf("ten lists allocated %d bytes", grown)
	}
}

func TestBatchIsBounded(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	many := make([]*types.Bundle, MaxBatch+1)
	for name, err := range map[string]error{
		"create": func() error {
			_, err := f.BatchCreateFederatedBundle(local(t), &bundlev1.BatchCreateFederatedBundleRequest{Bundle: many})
			return err
		}(),
		"update": func() error {
			_, err := f.BatchUpdateFederatedBundle(local(t), &bundlev1.BatchUpdateFederatedBundleRequest{Bundle: many})
			return err
		}(),
		"set": func() error {
			_, err := f.BatchSetFederatedBundle(local(t), &bundlev1.BatchSetFederatedBundleRequest{Bundle: many})
			return err
		}(),
		"delete": func() error {
			_, err := f.BatchDeleteFederatedBundle(local(t), &bundlev1.BatchDeleteFederatedBundleRequest{TrustDomains: make([]string, MaxBatch+1)})
			return err
		}(),
	} {
		if codeOf(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "split") {
			t.Errorf("%s: got %v, want InvalidArgument that says what to do", name, err)
		}
	}
	if got := f.set(t, nil, many[:MaxBatch]...); len(got) != MaxBatch {
		t.Errorf("want %d results, got %d", MaxBatch, len(got))
	}
}

// When a call returns, this server's own view has what it did.
func TestWritesSettle(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.Slow.Store(true)
	f.set(t, nil, &types.Bundle{TrustDomain: "other.test"})
	if _, ok := f.Index.Bundle(other); !ok {
		t.Error("what was set is not there")
	}
	f.delete0(t, "other.test")
	if _, ok := f.Index.Bundle(other); ok {
		t.Error("what was deleted is there")
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	third := spiffeid.RequireTrustDomainFromString("third.test")
	del := func(mode bundlev1.BatchDeleteFederatedBundleRequest_Mode, names ...string) []string {
		t.Helper()
		resp, err := f.BatchDeleteFederatedBundle(local(t), &bundlev1.BatchDeleteFederatedBundleRequest{TrustDomains: names, Mode: mode})
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for i, r := range resp.Results {
			if r.TrustDomain != names[i] {
				t.Errorf("want %q, got %q", names[i], r.TrustDomain)
			}
			out = append(out, codes.Code(r.Status.Code).String()+": "+r.Status.Message)
		}
		return out
	}
	f.set(t, nil, &types.Bundle{TrustDomain: "other.test"}, &types.Bundle{TrustDomain: "third.test"})
	ids := f.federate(t, 30, other, third)
	for _, step := range []struct {
		mode    bundlev1.BatchDeleteFederatedBundleRequest_Mode
		names   []string
		want    []string
		entries int
		federal int // trust domains of the first entry
	}{
		{0, []string{"example.org", "BAD", "", "nobody.test", "other.test"}, []string{
			"InvalidArgument: removing the bundle for the server trust domain is not allowed",
			"InvalidArgument: trust domain argument is not valid: " + noUpper,
			"InvalidArgument: trust domain argument is not valid: trust domain is missing",
			"NotFound: bundle not found",
			"FailedPrecondition: failed to delete federated bundle: cannot delete bundle; federated with 30 registration entries",
		}, 30, 2},
		{bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE, []string{"spiffe://other.test", "other.test"}, []string{"OK: OK", "NotFound: bundle not found"}, 30, 1},
		{bundlev1.BatchDeleteFederatedBundleRequest_DELETE, []string{"third.test"}, []string{"OK: OK"}, 0, 0},
	} {
		if diff := cmp.Diff(step.want, del(step.mode, step.names...)); diff != "" {
			t.Errorf("%v (-want +got):\n%s", step.mode, diff)
		}
		f.fresh(t)
		if n := f.Index.CountEntries(registry.EntryFilter{}, time.Now()); n != step.entries {
			t.Errorf("%v: want %d entries, got %d", step.mode, step.entries, n)
		}
		e, ok := f.Index.Entry(ids[0], time.Now())
		if ok != (step.entries > 0) || ok && len(e.FederatesWith) != step.federal {
			t.Errorf("%v: want %d trust domains, got %+v", step.mode, step.federal, e)
		}
	}
	if _, err := f.BatchDeleteFederatedBundle(local(t), &bundlev1.BatchDeleteFederatedBundleRequest{Mode: 7}); codeOf(err) != codes.InvalidArgument || err.Error() != `failed to parse deletion mode: unhandled delete mode "7"` {
		t.Errorf("unknown mode: %v", err)
	}
	f.set(t, nil, &types.Bundle{TrustDomain: "other.test"})
	f.Away.Store(true)
	if got := del(0, "other.test"); got[0] != "Unavailable: failed to delete federated bundle: the store is not available now: try again" {
		t.Errorf("store away: %q", got)
	}
	ctx, cancel := context.WithCancel(local(t))
	cancel()
	f.Away.Store(false)
	if resp, err := f.BatchDeleteFederatedBundle(ctx, &bundlev1.BatchDeleteFederatedBundleRequest{TrustDomains: []string{"other.test"}}); err != nil || codes.Code(resp.Results[0].Status.Code) != codes.Canceled {
		t.Errorf("cancelled: %v, %v", resp, err)
	}
}
