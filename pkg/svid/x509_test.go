package svid_test

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/pkg/svid"
)

// TestSameBytesAsStandardLibrary holds our encoder against crypto/x509: what is
// signed is byte for byte the same, for every kind of key, both forms of time,
// and lengths on both sides of DER's boundaries.
func TestSameBytesAsStandardLibrary(t *testing.T) {
	t.Parallel()
	type content struct {
		id  string
		dns []string
		now time.Time
	}
	contents := map[string]content{
		"plain":         {"/web", nil, noon},
		"DNS names":     {"/web", []string{"web.example.org", "web"}, noon},
		"wildcard":      {"/web", []string{"*.example.org"}, noon},
		"underscore":    {"/web", []string{"_grpc.web.example.org"}, noon},
		"CN at 64":      {"/web", []string{strings.Repeat("a", 60) + ".org"}, noon},
		"CN beyond 64":  {"/web", []string{strings.Repeat("a", 61) + ".org"}, noon},
		"long ID":       {"/" + strings.Repeat("x", 2026), nil, noon},
		"last UTCTime":  {"/web", nil, time.Date(2049, 12, 31, 22, 59, 59, 0, time.UTC)},
		"both times":    {"/web", nil, time.Date(2049, 12, 31, 23, 30, 0, 0, time.UTC)},
		"general times": {"/web", nil, time.Date(2051, 2, 3, 4, 5, 6, 0, time.UTC)},
	}
	for n := range 40 { // every length of the SANs around 128 and 256 bytes
		contents[fmt.Sprintf("SAN 128 %+d", n-20)] = content{"/" + strings.Repeat("x", 80+n), nil, noon}
		contents[fmt.Sprintf("SAN 256 %+d", n-20)] = content{"/" + strings.Repeat("x", 208+n), nil, noon}
	}
	for caName, caKey := range keyKinds() {
		for leafName, leafKey := range keyKinds() {
			t.Run(caName+" signs "+leafName, func(t *testing.T) {
				t.Parallel()
				for name, c := range contents {
					ca := newAuthority(t, caKey, c.now, 24*time.Hour)
					req := svid.X509Request{
						Kind: svid.Workload, ID: spiffeid.RequireFromPath(td, c.id), DNSNames: c.dns,
						PublicKey: leafKey.Public(), TTL: time.Hour,
					}
					_, got := ca.issue(t, c.now, req)
					want := byStandardLibrary(t, ca, got, c.now, req)
					if diff := cmp.Diff(want.RawTBSCertificate, got.RawTBSCertificate); diff != "" {
						t.Fatalf("%s (-standard library +ours):\n%s", name, diff)
					}
					if err := ca.cert.CheckSignature(got.SignatureAlgorithm, got.RawTBSCertificate, got.Signature); err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					if caName != "P-256" || leafName != "P-256" {
						return // one content is enough
					}
				}
			})
		}
	}
}

// byStandardLibrary issues the same certificate with x509.CreateCertificate.
func byStandardLibrary(t *testing.T, ca authority, ours *x509.Certificate, now time.Time, req svid.X509Request) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{
		SerialNumber:          ours.SerialNumber,
		Subject:               pkix.Name{Country: []string{"US"}, Organization: []string{"SPIRE"}},
		NotBefore:             now.Add(-10 * time.Second),
		NotAfter:              now.Add(req.TTL),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		SubjectKeyId:          ours.SubjectKeyId,
		DNSNames:              req.DNSNames,
		URIs:                  []*url.URL{req.ID.URL()},
	}
	if len(req.DNSNames) > 0 && len(req.DNSNames[0]) <= 64 {
		tmpl.Subject.CommonName = req.DNSNames[0]
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, req.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestVerifies: relying parties accept what we issue, for as long as it says
// and no longer.
func TestVerifies(t *testing.T) {
	t.Parallel()
	for name, key := range keyKinds() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := newAuthority(t, key, noon, 24*time.Hour)
			bundle := x509bundle.FromX509Authorities(td, []*x509.Certificate{ca.cert})
			out, leaf := ca.issue(t, noon, webRequest())
			if len(out.Chain) != 1 {
				t.Errorf("the chain has %d certificates; the root is not to be in it", len(out.Chain))
			}
			for _, c := range []struct {
				at time.Time
				ok bool
			}{
				{out.NotBefore.Add(-time.Second), false}, {out.NotBefore, true}, {noon, true},
				{out.NotAfter, true}, {out.NotAfter.Add(time.Second), false},
			} {
				id, _, err := x509svid.ParseAndVerify(out.Chain, bundle, x509svid.WithTime(c.at))
				if (err == nil) != c.ok {
					t.Errorf("go-spiffe at %s: %v", c.at, err)
				}
				if c.ok && id != webID {
					t.Errorf("go-spiffe at %s: ID %s", c.at, id)
				}
			}
			roots := x509.NewCertPool()
			roots.AddCert(ca.cert)
			for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
				_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: noon, KeyUsages: []x509.ExtKeyUsage{usage}})
				if err != nil {
					t.Errorf("usage %d: %v", usage, err)
				}
			}
		})
	}
}

func TestChainOfIntermediate(t *testing.T) {
	t.Parallel()
	root := newAuthority(t, keyKinds()["P-384"], noon, 20*time.Hour)
	key := keyKinds()["P-256"]
	tmpl, err := svid.CATemplate(noon, noon.Add(30*time.Hour), [16]byte{9}, td, pkix.Name{Organization: []string{"SPIFFE"}}, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, root.cert, key.Public(), root.key)
	if err != nil {
		t.Fatal(err)
	}
	middle, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	upper := root.cert // stands for one more intermediate, which ends first
	issuer, err := svid.NewX509Issuer(td, []*x509.Certificate{middle, upper})
	if err != nil {
		t.Fatal(err)
	}
	if want := upper.NotAfter; !issuer.NotAfter().Equal(want) {
		t.Errorf("the authority ends %s, want %s, the earliest of its chain", issuer.NotAfter(), want)
	}
	issuer, err = svid.NewX509Issuer(td, []*x509.Certificate{middle})
	if err != nil {
		t.Fatal(err)
	}
	out, _ := authority{key: key, cert: middle, issuer: issuer}.issue(t, noon, webRequest())
	if len(out.Chain) != 2 || !cmp.Equal(out.Chain[1], middle.Raw) {
		t.Fatalf("the chain has %d certificates, want the leaf and the intermediate", len(out.Chain))
	}
	if _, _, err := x509svid.ParseAndVerify(out.Chain, x509bundle.FromX509Authorities(td, []*x509.Certificate{root.cert}), x509svid.WithTime(noon)); err != nil {
		t.Error(err)
	}
}

func TestLifetime(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, keyKinds()["P-256"], noon, 24*time.Hour)
	end := ca.cert.NotAfter
	for name, c := range map[string]struct {
		now       time.Time
		ttl       time.Duration
		notBefore time.Time
		notAfter  time.Time
		capped    bool
		err       error
	}{
		"usual":               {noon.Add(time.Hour), time.Hour, at("12:59:50"), at("14:00:00"), false, nil},
		"CA's first moment":   {noon, time.Hour, at("11:59:50"), at("13:00:00"), false, nil},
		"before NotBefore":    {ca.cert.NotBefore.Add(-time.Second), time.Hour, time.Time{}, time.Time{}, false, svid.ErrExpired},
		"clock 5 s behind":    {noon.Add(-5 * time.Second), time.Hour, at("11:59:50"), at("12:59:55"), false, nil},
		"up to the CA's end":  {end.Add(-time.Hour), time.Hour, at("12:00:00").Add(23*time.Hour - 10*time.Second), end, false, nil},
		"1 s beyond the end":  {end.Add(-time.Hour), time.Hour + time.Second, at("12:00:00").Add(23*time.Hour - 10*time.Second), end, true, nil},
		"in the last second":  {end.Add(-time.Second), time.Hour, end.Add(-11 * time.Second), end, true, nil},
		"at the end":          {end, time.Hour, time.Time{}, time.Time{}, false, svid.ErrExpired},
		"after the end":       {end.Add(time.Hour), time.Hour, time.Time{}, time.Time{}, false, svid.ErrExpired},
		"fraction of seconds": {noon.Add(900 * time.Millisecond), time.Second, at("11:59:50"), at("12:00:01"), false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			req := webRequest()
			req.TTL = c.ttl
			approved, err := ca.issuer.Approve(c.now, [16]byte{1}, req)
			if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
				t.Fatalf("Approve returns %v, want %v", err, c.err)
			}
			if err != nil {
				return
			}
			out := seal(t, ca.key, approved)
			got := []any{out.NotBefore, out.NotAfter, out.Capped}
			if diff := cmp.Diff([]any{c.notBefore, c.notAfter, c.capped}, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			cert := must(x509.ParseCertificate(out.Chain[0]))
			if !cert.NotBefore.Equal(out.NotBefore) || !cert.NotAfter.Equal(out.NotAfter) || cert.SerialNumber.String() != out.Serial {
				t.Error("the certificate says something else than the X509SVID")
			}
		})
	}
}

func at(clock string) time.Time {
	return must(time.Parse(time.DateTime, "2026-03-14 "+clock)).UTC()
}

// TestS19_KindBindsThePath: who asks for an ID outside its kind is
// refused, so that no entry can name an agent or a server.
func TestS19_KindBindsThePath(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind svid.Kind
		id   string
		ok   bool
	}{
		{svid.Workload, "spiffe://example.org/web", true},
		{svid.Workload, "spiffe://example.org/spire-like", true},
		{svid.Workload, "spiffe://example.org/web/spire/agent/x", true},
		{svid.Workload, "spiffe://example.org/spire", false},
		{svid.Workload, "spiffe://example.org/spire/server", false},
		{svid.Workload, "spiffe://example.org/spire/agent/join_token/x", false},
		{svid.Workload, "spiffe://example.org/spire/other", false},
		{svid.Workload, "spiffe://example.org", false},
		{svid.Workload, "spiffe://other.org/web", false},
		{svid.Agent, "spiffe://example.org/spire/agent/join_token/x", true},
		{svid.Agent, "spiffe://example.org/spire/agent", false},
		{svid.Agent, "spiffe://example.org/spire/server", false},
		{svid.Agent, "spiffe://example.org/web", false},
		{svid.Agent, "spiffe://other.org/spire/agent/x/y", false},
		{svid.Server, "spiffe://example.org/spire/server", true},
		{svid.Server, "spiffe://example.org/spire/server/x", false},
		{svid.Server, "spiffe://example.org/spire/agent/x/y", false},
		{svid.Server, "spiffe://other.org/spire/server", false},
		{svid.Kind(0), "spiffe://example.org/web", false},
		{svid.Kind(4), "spiffe://example.org/web", false},
	} {
		ca := newAuthority(t, keyKinds()["P-256"], noon, 24*time.Hour)
		req := webRequest()
		req.Kind, req.ID = c.kind, spiffeid.RequireFromString(c.id)
		_, err := ca.issuer.Approve(noon, [16]byte{}, req)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, svid.ErrRefused) {
			t.Errorf("%s %s: %v", c.kind, c.id, err)
		}
	}
}

// TestS08_X509Limits tries each limit of a request on both sides.
func TestS08_X509Limits(t *testing.T) {
	t.Parallel()
	label := func(n int) string { return strings.Repeat("a", n) }
	name := func(n int) string { // n bytes in labels of at most 63
		return strings.Repeat(label(49)+".", n/50) + label(n%50)
	}
	names := func(n int) []string {
		list := make([]string, n)
		for i := range list {
			list[i] = fmt.Sprintf("n%d.example.org", i)
		}
		return list
	}
	path := func(n int) spiffeid.ID { // n bytes in all
		return spiffeid.RequireFromPath(td, "/"+label(n-len("spiffe://example.org/")))
	}
	dns := func(list ...string) func(*svid.X509Request) {
		return func(r *svid.X509Request) { r.DNSNames = list }
	}
	for text, c := range map[string]struct {
		set func(*svid.X509Request)
		ok  bool
	}{
		"ID of 2047":       {func(r *svid.X509Request) { r.ID = path(2047) }, true},
		"ID of 2048":       {func(r *svid.X509Request) { r.ID = path(2048) }, true},
		"ID of 2049":       {func(r *svid.X509Request) { r.ID = path(2049) }, false},
		"no ID":            {func(r *svid.X509Request) { r.ID = spiffeid.ID{} }, false},
		"TTL -1":           {func(r *svid.X509Request) { r.TTL = -1 }, false},
		"TTL 0":            {func(r *svid.X509Request) { r.TTL = 0 }, false},
		"TTL 1":            {func(r *svid.X509Request) { r.TTL = 1 }, true},
		"TTL of 100 years": {func(r *svid.X509Request) { r.TTL = 100 * 365 * 24 * time.Hour }, true},
		"TTL beyond":       {func(r *svid.X509Request) { r.TTL = 100*365*24*time.Hour + 1 }, false},
		"255 names":        {dns(names(255)...), true},
		"256 names":        {dns(names(256)...), true},
		"257 names":        {dns(names(257)...), false},
		"name of 252":      {dns(name(252)), true},
		"name of 253":      {dns(name(253)), true},
		"name of 254":      {dns(name(254)), false},
		"label of 62":      {dns(label(62)), true},
		"label of 63":      {dns(label(63)), true},
		"label of 64":      {dns(label(64)), false},
		"empty name":       {dns(""), false},
		"a name twice":     {dns("a.org", "b.org", "a.org"), false},
		"trailing dot":     {dns("a.org."), false},
		"leading dot":      {dns(".a.org"), false},
		"empty label":      {dns("a..org"), false},
		"leading hyphen":   {dns("-a.org"), false},
		"trailing hyphen":  {dns("a-.org"), false},
		"inner hyphen":     {dns("a-b.org"), true},
		"underscore":       {dns("_a_.b_c.org"), true},
		"space":            {dns("a b.org"), false},
		"NUL":              {dns("a\x00.org"), false},
		"not ASCII":        {dns("ä.org"), false},
		"wildcard":         {dns("*.a.org"), true},
		"wildcard alone":   {dns("*"), false},
		"wildcard dot":     {dns("*."), false},
		"two wildcards":    {dns("*.*.org"), false},
		"wildcard inside":  {dns("a.*.org"), false},
		"half a wildcard":  {dns("a*.org"), false},
		"agent with DNS name": {func(r *svid.X509Request) {
			r.Kind, r.DNSNames = svid.Agent, []string{"a.org"}
			r.ID = spiffeid.RequireFromPath(td, "/spire/agent/x/y")
		}, false},
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			ca := newAuthority(t, keyKinds()["P-256"], noon, 24*time.Hour)
			req := webRequest()
			c.set(&req)
			_, err := ca.issuer.Approve(noon, [16]byte{}, req)
			if (err == nil) != c.ok || err != nil && !errors.Is(err, svid.ErrRefused) {
				t.Errorf("Approve returns %v", err)
			}
		})
	}
}

// TestS19_ApprovalIsUsedOnce: whatever the interleaving, one approval makes one
// signature and one SVID.
func TestS19_ApprovalIsUsedOnce(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, keyKinds()["P-256"], noon, 24*time.Hour)
	approved, err := ca.issuer.Approve(noon, [16]byte{}, webRequest())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := approved.Seal([]byte{1}); !errors.Is(err, svid.ErrUsed) {
		t.Errorf("Seal before Take returns %v", err)
	}
	var takes, seals atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, _, err := approved.Take(); err == nil {
				takes.Add(1)
			} else if !errors.Is(err, svid.ErrUsed) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for range 16 {
		wg.Go(func() {
			if _, err := approved.Seal([]byte{1}); err == nil {
				seals.Add(1)
			}
		})
	}
	wg.Wait()
	if takes.Load() != 1 || seals.Load() != 1 {
		t.Errorf("taken %d times, sealed %d times", takes.Load(), seals.Load())
	}
}

func TestIssuerRefusesUnfitCertificates(t *testing.T) {
	t.Parallel()
	key := keyKinds()["P-256"]
	for name, change := range map[string]func(*x509.Certificate){
		"not a CA":        func(c *x509.Certificate) { c.IsCA = false },
		"no keyCertSign":  func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign },
		"no cRLSign":      func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCertSign },
		"of another td":   func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "other.org"}} },
		"with a path":     func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/x"}} },
		"with two URIs":   func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) },
		"without subject": func(c *x509.Certificate) { c.Subject = pkix.Name{} },
	} {
		tmpl, err := svid.CATemplate(noon, noon.Add(time.Hour), [16]byte{}, td, pkix.Name{Organization: []string{"SPIFFE"}}, key.Public())
		if err != nil {
			t.Fatal(err)
		}
		change(tmpl)
		if !tmpl.IsCA {
			tmpl.MaxPathLen = 0
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		cert := must(x509.ParseCertificate(der))
		if _, err := svid.NewX509Issuer(td, []*x509.Certificate{cert}); !errors.Is(err, svid.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := svid.NewX509Issuer(td, nil); !errors.Is(err, svid.ErrRefused) {
		t.Errorf("no chain: %v", err)
	}
}

// TestSerial: always positive, 16 bytes long and not zero.
func TestSerial(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, keyKinds()["P-256"], noon, 24*time.Hour)
	for _, random := range [][16]byte{{}, {0xff, 0xff}, {0x80}, {0x7f}} {
		approved, err := ca.issuer.Approve(noon, random, webRequest())
		if err != nil {
			t.Fatal(err)
		}
		n, ok := new(big.Int).SetString(seal(t, ca.key, approved).Serial, 10)
		if !ok || n.Sign() <= 0 || n.BitLen() != 127 {
			t.Errorf("random %x: serial %s", random[:2], n)
		}
	}
}

// TestGolden shows the certificates as text. Keys are of testdata, so that key
// identifiers stay the same.
func TestGolden(t *testing.T) {
	t.Parallel()
	caKey, leafKey := loadKey(t, "ca.key"), loadKey(t, "leaf.key")
	ca := newAuthority(t, caKey, noon, 24*time.Hour)
	golden(t, "ca.txt", describe(ca.cert))
	req := webRequest()
	req.PublicKey = leafKey.Public()
	_, cert := ca.issue(t, noon, req)
	golden(t, "workload.txt", describe(cert))
	req.DNSNames = []string{"web.example.org", "web"}
	_, cert = ca.issue(t, noon, req)
	golden(t, "workload-dns.txt", describe(cert))
	_, cert = ca.issue(t, noon, svid.X509Request{
		Kind: svid.Agent, ID: spiffeid.RequireFromPath(td, "/spire/agent/join_token/abc"), PublicKey: leafKey.Public(), TTL: time.Hour,
	})
	golden(t, "agent.txt", describe(cert))
}
