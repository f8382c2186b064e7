package svidapi_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/server/apitest"
)

func uri(s string) *url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return u
}

func leafOf(t *testing.T, s *types.X509SVID) *x509.Certificate {
	t.Helper()
	leaf, err := x509.ParseCertificate(s.GetCertChain()[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func wire(path string) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: "example.org", Path: path}
}

func TestMintX509(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	client := svidv1.NewSVIDClient(w.Local(t))
	key := apitest.NewKey(t)
	out, err := client.MintX509SVID(t.Context(), &svidv1.MintX509SVIDRequest{
		Csr: apitest.CSR(t, key, x509.CertificateRequest{
			URIs: []*url.URL{uri("spiffe://example.org/db")}, DNSNames: []string{"db.example.org"},
		}),
		Ttl: 600,
	})
	if err != nil {
		t.Fatal(err)
	}
	leaf := leafOf(t, out.GetSvid())
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://example.org/db" || !slices.Equal(leaf.DNSNames, []string{"db.example.org"}) {
		t.Errorf("SANs %v %v", leaf.URIs, leaf.DNSNames)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		t.Error("the certificate has another key")
	}
	if life := time.Until(leaf.NotAfter); life < 9*time.Minute || life > 10*time.Minute {
		t.Errorf("it lives %s, want 10m", life)
	}
	if out.GetSvid().GetExpiresAt() != leaf.NotAfter.Unix() || out.GetSvid().GetId().GetPath() != "/db" {
		t.Errorf("answer says %v", out.GetSvid())
	}
}

func TestMintX509Refusals(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	client := svidv1.NewSVIDClient(w.Local(t))
	key := apitest.NewKey(t)
	csr := func(r x509.CertificateRequest) []byte { return apitest.CSR(t, key, r) }
	mangled := csr(x509.CertificateRequest{URIs: []*url.URL{uri("spiffe://example.org/a")}})
	mangled[len(mangled)-1] ^= 1
	for name, c := range map[string]struct {
		csr  []byte
		text string
	}{
		"none":           {nil, "missing CSR"},
		"noise":          {[]byte("noise"), "malformed CSR"},
		"bad signature":  {mangled, "malformed CSR"},
		"no URI":         {csr(x509.CertificateRequest{}), "malformed CSR"},
		"two URIs":       {csr(x509.CertificateRequest{URIs: []*url.URL{uri("spiffe://example.org/a"), uri("spiffe://example.org/b")}}), "malformed CSR"},
		"not SPIFFE":     {csr(x509.CertificateRequest{URIs: []*url.URL{uri("https://example.org/a")}}), "malformed CSR"},
		"foreign":        {csr(x509.CertificateRequest{URIs: []*url.URL{uri("spiffe://other.org/a")}}), "failed to sign X509-SVID"},
		"no path":        {csr(x509.CertificateRequest{URIs: []*url.URL{uri("spiffe://example.org")}}), "failed to sign X509-SVID"},
		"the server":     {csr(x509.CertificateRequest{URIs: []*url.URL{uri("spiffe://example.org/spire/server")}}), "failed to sign X509-SVID"},
		"an agent":       {csr(x509.CertificateRequest{URIs: []*url.URL{uri("spiffe://example.org/spire/agent/a/b")}}), "failed to sign X509-SVID"},
		"S20 dots":       {csr(x509.CertificateRequest{URIs: []*url.URL{uri("spiffe://example.org/a/../spire/server")}}), "malformed CSR"},
		"malformed name": {csr(x509.CertificateRequest{URIs: []*url.URL{uri("spiffe://example.org/a")}, DNSNames: []string{"a b"}}), "failed to sign X509-SVID"},
	} {
		_, err := client.MintX509SVID(t.Context(), &svidv1.MintX509SVIDRequest{Csr: c.csr})
		if status.Code(err) != codes.InvalidArgument || !strings.HasPrefix(status.Convert(err).Message(), c.text) {
			t.Errorf("%s: %v, want InvalidArgument: %s…", name, err, c.text)
		}
	}
}

// claims are those of a token, unverified: its verification is package svid's.
func claims(t *testing.T, token string) map[string]any {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("token has %d parts", len(parts))
	}
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]any{}
	if err := json.Unmarshal(body, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestMintJWT(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	client := svidv1.NewSVIDClient(w.Local(t))
	out, err := client.MintJWTSVID(t.Context(), &svidv1.MintJWTSVIDRequest{Id: wire("/db"), Audience: []string{"a", "b"}, Ttl: 60})
	if err != nil {
		t.Fatal(err)
	}
	got := claims(t, out.GetSvid().GetToken())
	if got["sub"] != "spiffe://example.org/db" || !cmp.Equal(got["aud"], []any{"a", "b"}) {
		t.Errorf("claims %v", got)
	}
	if s := out.GetSvid(); s.GetExpiresAt()-s.GetIssuedAt() != 60 || float64(s.GetExpiresAt()) != got["exp"] {
		t.Errorf("from %d to %d, exp %v, want 60s", s.GetIssuedAt(), s.GetExpiresAt(), got["exp"])
	}
	for name, c := range map[string]struct {
		req  *svidv1.MintJWTSVIDRequest
		text string
	}{
		"no ID":        {&svidv1.MintJWTSVIDRequest{Audience: []string{"a"}}, "invalid SPIFFE ID"},
		"foreign":      {&svidv1.MintJWTSVIDRequest{Id: &types.SPIFFEID{TrustDomain: "other.org", Path: "/a"}, Audience: []string{"a"}}, "invalid SPIFFE ID"},
		"no path":      {&svidv1.MintJWTSVIDRequest{Id: wire(""), Audience: []string{"a"}}, "invalid SPIFFE ID"},
		"the server":   {&svidv1.MintJWTSVIDRequest{Id: wire("/spire/server"), Audience: []string{"a"}}, "invalid SPIFFE ID"},
		"no audience":  {&svidv1.MintJWTSVIDRequest{Id: wire("/a")}, "at least one audience is required"},
		"empty one":    {&svidv1.MintJWTSVIDRequest{Id: wire("/a"), Audience: []string{""}}, "failed to sign JWT-SVID"},
		"negative TTL": {&svidv1.MintJWTSVIDRequest{Id: wire("/a"), Audience: []string{"a"}, Ttl: -1}, "failed to sign JWT-SVID"},
	} {
		_, err := client.MintJWTSVID(t.Context(), c.req)
		if status.Code(err) != codes.InvalidArgument || !strings.HasPrefix(status.Convert(err).Message(), c.text) {
			t.Errorf("%s: %v, want InvalidArgument: %s…", name, err, c.text)
		}
	}
}

// fleet is two agents with an entry each.
type fleet struct {
	*apitest.World
	one, two   *apitest.Agent
	mine, hers *registry.Entry
	client     svidv1.SVIDClient // of the first
}

func newFleet(tb testing.TB) *fleet {
	tb.Helper()
	w := apitest.New(tb, apitest.Options{})
	f := &fleet{World: w, one: w.NewAgent(tb, "one"), two: w.NewAgent(tb, "two")}
	mine := w.Entry(tb, f.one.ID, "/mine")
	mine.DNSNames = []string{"mine.example.org"}
	mine.X509SVIDTTL, mine.JWTSVIDTTL = 10*time.Minute, time.Minute
	mine.Attributes = &registry.Attributes{JWTSVIDIncludeJTI: true}
	made := w.Create(tb, mine, w.Entry(tb, f.two.ID, "/hers"))
	f.mine, f.hers = made[0], made[1]
	f.client = svidv1.NewSVIDClient(w.Dial(tb, &f.one.Cert))
	return f
}

func TestBatchNewX509(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	expired := f.Entry(t, f.one.ID, "/soon")
	expired.ExpiresAt = time.Now().Add(2 * time.Second).Truncate(time.Second)
	soon := f.Create(t, expired)[0]
	time.Sleep(time.Until(soon.ExpiresAt))

	key := apitest.NewKey(t)
	csr := apitest.CSR(t, key, x509.CertificateRequest{})
	mangled := bytes.Clone(csr)
	mangled[len(mangled)-1] ^= 1
	params := []*svidv1.NewX509SVIDParams{
		{EntryId: f.mine.ID, Csr: csr},
		{Csr: csr},
		{EntryId: f.mine.ID},
		{EntryId: "nobody", Csr: csr},
		{EntryId: f.hers.ID, Csr: csr},
		{EntryId: soon.ID, Csr: csr},
		{EntryId: f.mine.ID, Csr: mangled},
		{EntryId: f.mine.ID, Csr: []byte("noise")},
		{EntryId: f.mine.ID, Csr: csr},
	}
	want := []struct {
		code codes.Code
		text string
	}{
		{codes.OK, "OK"},
		{codes.InvalidArgument, "missing entry ID"},
		{codes.InvalidArgument, "missing CSR"},
		{codes.NotFound, "entry not found or not authorized"},
		{codes.NotFound, "entry not found or not authorized"},
		{codes.NotFound, "entry not found or not authorized"},
		{codes.InvalidArgument, "malformed CSR"},
		{codes.InvalidArgument, "malformed CSR"},
		{codes.OK, "OK"},
	}
	out, err := f.client.BatchNewX509SVID(t.Context(), &svidv1.BatchNewX509SVIDRequest{Params: params})
	if err != nil {
		t.Fatal(err)
	}
	if len(out.GetResults()) != len(want) {
		t.Fatalf("%d results, want %d", len(out.GetResults()), len(want))
	}
	for i, r := range out.GetResults() {
		if codes.Code(r.GetStatus().GetCode()) != want[i].code || !strings.HasPrefix(r.GetStatus().GetMessage(), want[i].text) {
			t.Errorf("item %d: %v, want %v", i, r.GetStatus(), want[i])
		}
		if (r.GetSvid() != nil) != (want[i].code == codes.OK) {
			t.Errorf("item %d: SVID %v with status %v", i, r.GetSvid(), r.GetStatus())
		}
	}
	leaf := leafOf(t, out.GetResults()[0].GetSvid())
	if leaf.URIs[0].Path != "/mine" || !slices.Equal(leaf.DNSNames, f.mine.DNSNames) || !key.PublicKey.Equal(leaf.PublicKey) {
		t.Errorf("certificate for %v %v", leaf.URIs, leaf.DNSNames)
	}
	if life := time.Until(leaf.NotAfter); life < 9*time.Minute || life > 10*time.Minute {
		t.Errorf("it lives %s, want the entry's 10m", life)
	}
}

func TestBatchNewX509Limits(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	for n, want := range map[int]codes.Code{0: codes.InvalidArgument, 1000: codes.OK, 1001: codes.InvalidArgument} {
		req := &svidv1.BatchNewX509SVIDRequest{}
		for range n {
			req.Params = append(req.Params, &svidv1.NewX509SVIDParams{EntryId: "x", Csr: []byte("x")})
		}
		if _, err := f.client.BatchNewX509SVID(t.Context(), req); status.Code(err) != want {
			t.Errorf("%d items: %v, want %s", n, err, want)
		}
	}
}

// What may be registered can be issued.
func TestEntriesAtTheirLimits(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	repeats := f.Entry(t, f.one.ID, "/repeats")
	repeats.DNSNames = []string{"b.example.org", "a.example.org", "b.example.org"}
	many := f.Entry(t, f.one.ID, "/many")
	for i := range 256 {
		many.DNSNames = append(many.DNSNames, fmt.Sprintf("h%d.example.org", i))
	}
	long := f.Entry(t, f.one.ID, "/"+strings.Repeat("p", 2048-len("spiffe://example.org/")))
	made := f.Create(t, repeats, many, long)
	want := [][]string{{"b.example.org", "a.example.org"}, many.DNSNames, nil}
	csr := apitest.CSR(t, apitest.NewKey(t), x509.CertificateRequest{})
	for i, e := range made {
		out, err := f.client.BatchNewX509SVID(t.Context(), &svidv1.BatchNewX509SVIDRequest{
			Params: []*svidv1.NewX509SVIDParams{{EntryId: e.ID, Csr: csr}},
		})
		if err != nil {
			t.Fatal(err)
		}
		r := out.GetResults()[0]
		if r.GetStatus().GetCode() != 0 {
			t.Errorf("%.60s: %s", e.SPIFFEID, r.GetStatus().GetMessage())
			continue
		}
		if diff := cmp.Diff(want[i], leafOf(t, r.GetSvid()).DNSNames); diff != "" {
			t.Errorf("%.60s: DNS names (-want +got):\n%s", e.SPIFFEID, diff)
		}
	}
}

func TestNewJWT(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	ids := map[any]bool{}
	for range 2 {
		out, err := f.client.NewJWTSVID(t.Context(), &svidv1.NewJWTSVIDRequest{EntryId: f.mine.ID, Audience: []string{"a"}})
		if err != nil {
			t.Fatal(err)
		}
		got := claims(t, out.GetSvid().GetToken())
		if got["sub"] != "spiffe://example.org/mine" || out.GetSvid().GetExpiresAt()-out.GetSvid().GetIssuedAt() != 60 {
			t.Errorf("claims %v, from %d to %d", got, out.GetSvid().GetIssuedAt(), out.GetSvid().GetExpiresAt())
		}
		ids[got["jti"]] = true
	}
	if len(ids) != 2 || ids[nil] {
		t.Errorf("jti of two tokens: %v, want two", ids)
	}
	plain, err := svidv1.NewSVIDClient(f.Dial(t, &f.two.Cert)).NewJWTSVID(t.Context(), &svidv1.NewJWTSVIDRequest{EntryId: f.hers.ID, Audience: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := claims(t, plain.GetSvid().GetToken()); got["jti"] != nil {
		t.Errorf("an entry that does not ask for it got jti %v", got["jti"])
	}
	for name, c := range map[string]struct {
		req  *svidv1.NewJWTSVIDRequest
		code codes.Code
		text string
	}{
		"no entry":    {&svidv1.NewJWTSVIDRequest{Audience: []string{"a"}}, codes.NotFound, "entry not found or not authorized"},
		"hers":        {&svidv1.NewJWTSVIDRequest{EntryId: f.hers.ID, Audience: []string{"a"}}, codes.NotFound, "entry not found or not authorized"},
		"no audience": {&svidv1.NewJWTSVIDRequest{EntryId: f.mine.ID}, codes.InvalidArgument, "at least one audience is required"},
	} {
		_, err := f.client.NewJWTSVID(t.Context(), c.req)
		if status.Code(err) != c.code || !strings.HasPrefix(status.Convert(err).Message(), c.text) {
			t.Errorf("%s: %v, want %s: %s", name, err, c.code, c.text)
		}
	}
}

// TestS19_EndOfEntitlement: an entry that is taken away, or an agent that is
// banned, gets nothing signed from the next call on.
func TestS19_EndOfEntitlement(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	sign := func() *types.Status {
		t.Helper()
		out, err := f.client.BatchNewX509SVID(t.Context(), &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{
			{EntryId: f.mine.ID, Csr: apitest.CSR(t, f.one.Key, x509.CertificateRequest{})},
		}})
		if err != nil {
			return &types.Status{Code: int32(status.Code(err))}
		}
		return out.GetResults()[0].GetStatus()
	}
	if s := sign(); s.GetCode() != int32(codes.OK) {
		t.Fatalf("entitled: %v", s)
	}
	for _, err := range f.Registry.DeleteEntries(t.Context(), []string{f.mine.ID}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	f.Fresh(t)
	if s := sign(); s.GetCode() != int32(codes.NotFound) {
		t.Errorf("after the entry was deleted: %v, want NotFound", s)
	}
	if _, err := agentv1.NewAgentClient(f.Local(t)).BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: wire(f.one.ID.Path())}); err != nil {
		t.Fatal(err)
	}
	if s := sign(); s.GetCode() != int32(codes.PermissionDenied) {
		t.Errorf("after the ban: %v, want PermissionDenied", s)
	}
}

func TestNotThere(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	if _, err := svidv1.NewSVIDClient(f.Local(t)).MintWITSVID(t.Context(), &svidv1.MintWITSVIDRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("MintWITSVID: %v, want Unimplemented", err)
	}
	if _, err := f.client.BatchNewWITSVID(t.Context(), &svidv1.BatchNewWITSVIDRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("BatchNewWITSVID: %v, want Unimplemented", err)
	}
}

// FuzzS19_IdentityIsTheEntrys: whatever a CSR says of subject, names and
// extensions, the SVID has the entry's SPIFFE ID and DNS names, the CSR's key,
// and nothing else.
func FuzzS19_IdentityIsTheEntrys(f *testing.F) {
	fl := newFleet(f)
	key := apitest.NewKey(f)
	f.Add("x", "spiffe://example.org/spire/server", "server.example.org", "a@b", []byte{0x30, 3, 1, 1, 0xff}, uint8(19))
	f.Add("", "spiffe://other.org/admin", "*", "", []byte{}, uint8(17))
	f.Add("CN=,", "spiffe://example.org/hers", "hers.example.org", "x@y", []byte{0x30, 0}, uint8(15))
	f.Add("mine", "", "", "", []byte("noise"), uint8(30))
	f.Fuzz(func(t *testing.T, name, id, dns, mail string, extension []byte, number uint8) {
		template := x509.CertificateRequest{
			Subject:         pkix.Name{CommonName: name, Organization: []string{mail}},
			ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, int(number)}, Critical: len(name)%2 == 0, Value: extension}},
		}
		if u, err := url.Parse(id); err == nil && id != "" {
			template.URIs = []*url.URL{u}
		}
		if dns != "" {
			template.DNSNames = []string{dns}
		}
		if mail != "" {
			template.EmailAddresses = []string{mail}
		}
		csr, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
		if err != nil {
			return // Not something that can be asked.
		}
		out, err := fl.client.BatchNewX509SVID(t.Context(), &svidv1.BatchNewX509SVIDRequest{
			Params: []*svidv1.NewX509SVIDParams{{EntryId: fl.mine.ID, Csr: csr}, {EntryId: fl.hers.ID, Csr: csr}, {EntryId: strings.ToValidUTF8(id, ""), Csr: csr}},
		})
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range out.GetResults()[1:] {
			if r.GetSvid() != nil {
				t.Errorf("item %d: signed for an entry that is not the agent's", i+1)
			}
		}
		if s := out.GetResults()[0].GetSvid(); s != nil {
			checkMine(t, leafOf(t, s), fl)
		}
	})
}

func checkMine(t *testing.T, leaf *x509.Certificate, f *fleet) {
	t.Helper()
	want := spiffeid.RequireFromString("spiffe://example.org/mine").String()
	switch {
	case len(leaf.URIs) != 1 || leaf.URIs[0].String() != want:
		t.Errorf("URI SANs %v, want %s", leaf.URIs, want)
	case !slices.Equal(leaf.DNSNames, f.mine.DNSNames):
		t.Errorf("DNS names %v, want %v", leaf.DNSNames, f.mine.DNSNames)
	case len(leaf.EmailAddresses)+len(leaf.IPAddresses) != 0:
		t.Errorf("other SANs %v %v", leaf.EmailAddresses, leaf.IPAddresses)
	case leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		t.Error("it can sign certificates")
	case leaf.Subject.CommonName != f.mine.DNSNames[0]:
		t.Errorf("common name %q", leaf.Subject.CommonName)
	}
	known := map[string]bool{"2.5.29.14": true, "2.5.29.15": true, "2.5.29.17": true, "2.5.29.19": true, "2.5.29.35": true, "2.5.29.37": true}
	for _, e := range leaf.Extensions {
		if !known[e.Id.String()] {
			t.Errorf("extension %s", e.Id)
		}
	}
	if fmt.Sprint(leaf.ExtKeyUsage) != fmt.Sprint([]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) &&
		fmt.Sprint(leaf.ExtKeyUsage) != fmt.Sprint([]x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}) {
		t.Errorf("extended key usage %v", leaf.ExtKeyUsage)
	}
}
