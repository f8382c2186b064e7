package ca_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/pkg/ca"
	"github.com/credence-id/credence/pkg/svid"
)

// TestIssueWhileRotating: with an authority every few seconds, and everybody
// asking all the time, no request fails and each SVID is in order.
func TestIssueWhileRotating(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		cfg := w.config("a", memory())
		cfg.CATTL = 10 * time.Second
		s := w.mustStart(cfg)
		defer s.stop()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for time.Since(start()) < time.Minute {
					if err := issueAndCheck(t.Context(), s); err != nil {
						t.Error(err)
						return
					}
					time.Sleep(40 * time.Millisecond)
				}
			})
		}
		wg.Wait()
		if n := w.logs.count("authority: activated"); n < 2*8 {
			t.Errorf("only %d activations", n)
		}
	})
}

// TestIssueNeverWaits: the store takes a write and does not answer, while a
// rotation is due. Requests are served at once all the same, and the rotation
// is done when the store is back.
func TestIssueNeverWaits(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		s := w.mustStart(w.config("a", w.diskKeys("a")))
		defer s.stop()
		s.faults.set(func(f *faults) { f.hang = true })
		for range 23 * 60 {
			before := time.Now()
			s.mustIssue(10 * time.Minute) // beyond the high-water mark, too
			if took := time.Since(before); took != 0 {
				t.Fatalf("issuing took %s of the bubble's time", took)
			}
			time.Sleep(time.Minute)
		}
		w.verify()
		s.faults.set(func(f *faults) { f.hang = false })
		time.Sleep(5 * time.Minute) // the hanging try, and a pause
		full(t, s)
		w.verify()
	})
}

// issueAndCheck verifies against the bundle in the store right after issuing.
func issueAndCheck(ctx context.Context, s *server) error {
	now := time.Now()
	x, err := s.IssueX509(ctx, now, request(time.Second))
	if err != nil {
		return err
	}
	j, err := s.IssueJWT(ctx, now, jwtRequest(time.Second))
	if err != nil {
		return err
	}
	b, err := s.w.reg.LoadBundle(ctx, td)
	if err != nil {
		return err
	}
	bundle := x509bundle.New(td)
	for _, a := range b.X509Authorities {
		c, err := x509.ParseCertificate(a.DER)
		if err != nil {
			return err
		}
		bundle.AddX509Authority(c)
	}
	if _, _, err := x509svid.ParseAndVerify(x.Chain, bundle, x509svid.WithTime(now)); err != nil {
		return err
	}
	token, err := jwt.ParseSigned(j.Token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return err
	}
	for _, a := range b.JWTAuthorities {
		if a.KeyID == token.Headers[0].KeyID {
			return nil
		}
	}
	return fmt.Errorf("key %s of a JWT-SVID is not in the bundle", token.Headers[0].KeyID)
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		cfg := w.config("a", memory())
		cfg.AgentTTL = 2 * time.Hour
		cfg.CASubject = pkix.Name{Country: []string{"DE"}, Organization: []string{"Acme"}, CommonName: "acme"}
		cfg.JWTIssuer = "https://oidc.example.org"
		s := w.mustStart(cfg)
		defer s.stop()
		now := time.Now()
		for kind, want := range map[svid.Kind]time.Duration{svid.Workload: time.Hour, svid.Agent: 2 * time.Hour, svid.Server: time.Hour} {
			req := request(0)
			req.Kind = kind
			req.ID = map[svid.Kind]spiffeid.ID{
				svid.Workload: webID, svid.Agent: agentID, svid.Server: spiffeid.RequireFromString("spiffe://example.org/spire/server"),
			}[kind]
			x, err := s.IssueX509(t.Context(), now, req)
			if err != nil {
				t.Fatal(err)
			}
			if got := x.NotAfter.Sub(now); got != want {
				t.Errorf("%s lives %s, want %s", kind, got, want)
			}
		}
		j, err := s.IssueJWT(t.Context(), now, svid.JWTRequest{ID: webID, Audience: []string{"billing"}, IncludeJTI: true})
		if err != nil {
			t.Fatal(err)
		}
		if got := j.ExpiresAt.Sub(now); got != 5*time.Minute {
			t.Errorf("a JWT-SVID lives %s", got)
		}
		token, err := jwt.ParseSigned(j.Token, []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		var claims jwt.Claims
		if err := token.UnsafeClaimsWithoutVerification(&claims); err != nil {
			t.Fatal(err)
		}
		if claims.Issuer != "https://oidc.example.org" || len(claims.ID) != 32 {
			t.Errorf("iss %q, jti %q", claims.Issuer, claims.ID)
		}
		root, err := x509.ParseCertificate(w.bundle().X509Authorities[0].DER)
		if err != nil {
			t.Fatal(err)
		}
		want := "CN=acme,O=Acme,C=DE,SERIALNUMBER=" + root.SerialNumber.String()
		got := strings.Join([]string{"CN=" + root.Subject.CommonName, "O=" + root.Subject.Organization[0], "C=" + root.Subject.Country[0], "SERIALNUMBER=" + root.Subject.SerialNumber}, ",")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("subject of the authority (-want +got):\n%s", diff)
		}
		if activeOf(s.X509().State()).ID != fmt.Sprintf("%x", root.SubjectKeyId) {
			t.Errorf("authority ID %s, subject key ID %x", activeOf(s.X509().State()).ID, root.SubjectKeyId)
		}
	})
}

func TestNotReadyBeforeStart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, err := ca.New(w.config("a", memory()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.IssueX509(t.Context(), time.Now(), request(0)); !errors.Is(err, ca.ErrNotReady) {
		t.Errorf("IssueX509: %v", err)
	}
	if _, err := a.IssueJWT(t.Context(), time.Now(), jwtRequest(0)); !errors.Is(err, ca.ErrNotReady) {
		t.Errorf("IssueJWT: %v", err)
	}
	if a.X509().State() != nil || a.JWT().State() != nil {
		t.Error("there are authorities before Start")
	}
}

// TestS19_RefusedBeforeTheKey: what breaks the profile is refused, counted and
// leaves no record.
func TestS19_RefusedBeforeTheKey(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		cfg := w.config("a", memory())
		metrics := prometheus.NewRegistry()
		cfg.Registerer = metrics
		cfg.OnIssue = func(i ca.Issued) { t.Errorf("issued %+v", i) }
		s := w.mustStart(cfg)
		defer s.stop()
		for name, change := range map[string]func(*svid.X509Request){
			"foreign":      func(r *svid.X509Request) { r.ID = spiffeid.RequireFromString("spiffe://other.org/web") },
			"an agent":     func(r *svid.X509Request) { r.ID = agentID },
			"negative TTL": func(r *svid.X509Request) { r.TTL = -time.Second },
			"no key":       func(r *svid.X509Request) { r.PublicKey = nil },
		} {
			req := request(0)
			change(&req)
			if _, err := s.IssueX509(t.Context(), time.Now(), req); !errors.Is(err, svid.ErrRefused) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := s.IssueJWT(t.Context(), time.Now(), svid.JWTRequest{ID: webID}); !errors.Is(err, svid.ErrRefused) {
			t.Errorf("no audience: %v", err)
		}
		synctest.Wait()
		if found, _ := s.Issued(time.Now(), func(ca.Issued) bool { return true }); len(found) != 0 {
			t.Errorf("the index has %d records", len(found))
		}
		if got := counter(t, metrics, "credence_ca_refused_total"); got != 5 {
			t.Errorf("%v refusals are counted, want 5", got)
		}
	})
}

func counter(t *testing.T, r *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue()
		}
	}
	return sum
}

// TestIssuedIndex: what is outstanding can be found by entry and authority,
// until it expires; the index is bounded and says what it dropped.
func TestIssuedIndex(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		var mu sync.Mutex
		var told []ca.Issued
		cfg := w.config("a", memory())
		cfg.MaxIssued = 10
		cfg.OnIssue = func(i ca.Issued) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, i)
		}
		s := w.mustStart(cfg)
		defer s.stop()
		issue := func(entry string, ttl time.Duration) *svid.X509SVID {
			t.Helper()
			req := request(ttl)
			req.EntryID, req.AgentID = entry, agentID
			x, err := s.IssueX509(t.Context(), time.Now(), req)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			return x
		}
		first := issue("one", time.Minute)
		for range 9 {
			issue("two", time.Hour)
		}
		one := func(i ca.Issued) bool { return i.EntryID == "one" }
		found, dropped := s.Issued(time.Now(), one)
		want := []ca.Issued{{
			Kind: "x509", Serial: first.Serial, SPIFFEID: webID.String(), EntryID: "one", AgentID: agentID.String(),
			AuthorityID: activeOf(s.X509().State()).ID, NotAfter: first.NotAfter,
		}}
		if diff := cmp.Diff(want, found); diff != "" || dropped != 0 {
			t.Errorf("dropped %d, found (-want +got):\n%s", dropped, diff)
		}
		if diff := cmp.Diff(want[0], told[0]); diff != "" || len(told) != 10 {
			t.Errorf("OnIssue was called %d times, first (-want +got):\n%s", len(told), diff)
		}
		issue("three", time.Hour)
		if _, dropped = s.Issued(time.Now(), one); dropped != 1 {
			t.Errorf("dropped %d, want 1: the index is full", dropped)
		}
		time.Sleep(2 * time.Minute)
		if found, _ := s.Issued(time.Now(), one); len(found) != 0 {
			t.Errorf("an expired SVID is found: %+v", found)
		}
		issue("three", time.Hour)
		if found, dropped := s.Issued(time.Now(), func(i ca.Issued) bool { return i.EntryID == "three" }); len(found) != 1 || dropped != 1 {
			t.Errorf("found %d, dropped %d; the expired one should have made room", len(found), dropped)
		}
	})
}

// TestS05_NothingSecretInLogs: neither tokens nor keys are logged over a life
// with errors in it.
func TestS05_NothingSecretInLogs(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		s := w.mustStart(w.config("a", w.diskKeys("a")))
		var tokens []string
		for range 40 {
			j, err := s.IssueJWT(t.Context(), time.Now(), jwtRequest(48*time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			tokens = append(tokens, j.Token)
			s.faults.set(func(f *faults) {
				f.down = nil
				if time.Now().Hour()%3 == 0 {
					f.down = errors.New("canary")
				}
			})
			time.Sleep(time.Hour)
		}
		s.stop()
		logged := w.logs.buf.Bytes()
		if !bytes.Contains(logged, []byte("canary")) {
			t.Error("no error was logged")
		}
		for _, token := range tokens {
			if bytes.Contains(logged, []byte(token[strings.LastIndexByte(token, '.')+1:])) {
				t.Error("a token is in the log")
			}
		}
		if bytes.Contains(logged, []byte("PRIVATE")) || bytes.Contains(logged, []byte("MIGH")) {
			t.Error("a key is in the log")
		}
	})
}

// benchAuthority is a running authority with keys in memory.
func benchAuthority(b *testing.B) *ca.Authority {
	b.Helper()
	w := newWorld(b)
	a, err := ca.New(w.config("bench", memory()))
	if err != nil {
		b.Fatal(err)
	}
	if err := a.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.Run(ctx); !errors.Is(err, context.Canceled) {
			b.Error(err)
		}
	})
	b.Cleanup(func() { cancel(); wg.Wait() })
	return a
}

// cpu runs the benchmark and reports the process's own CPU time, which says
// more than the clock on a machine that others use.
func cpu(b *testing.B, fn func() error) {
	b.Helper()
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	b.ReportAllocs()
	before := used()
	for b.Loop() {
		if err := fn(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op")
}

// BenchmarkSign is the floor: one P-256 signature.
func BenchmarkSign(b *testing.B) {
	key, digest := leafKey(), make([]byte, 32)
	cpu(b, func() error {
		_, err := key.Sign(rand.Reader, digest, crypto.SHA256)
		return err
	})
}

// BenchmarkIssueX509 is an X509-SVID from a parsed key. Target: 40 µs of CPU,
// 24 of them the signature (P3, P5).
func BenchmarkIssueX509(b *testing.B) {
	a, req := benchAuthority(b), request(0)
	cpu(b, func() error {
		_, err := a.IssueX509(b.Context(), time.Now(), req)
		return err
	})
}

// BenchmarkIssueX509FromCSR is with the CSR, as P3 and P5 count it. Target:
// 100 µs of CPU.
func BenchmarkIssueX509FromCSR(b *testing.B) {
	a, req := benchAuthority(b), request(0)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, leafKey())
	if err != nil {
		b.Fatal(err)
	}
	cpu(b, func() error {
		if req.PublicKey, err = svid.ParseCSR(der); err != nil {
			return err
		}
		_, err := a.IssueX509(b.Context(), time.Now(), req)
		return err
	})
}

// BenchmarkIssueJWT is a JWT-SVID. Target: 35 µs of CPU (P4).
func BenchmarkIssueJWT(b *testing.B) {
	a, req := benchAuthority(b), jwtRequest(0)
	cpu(b, func() error {
		_, err := a.IssueJWT(b.Context(), time.Now(), req)
		return err
	})
}

// BenchmarkStart is from an empty store to the first SVID (P12).
func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		w := newWorld(b)
		b.StartTimer()
		a, err := ca.New(w.config("bench", memory()))
		if err != nil {
			b.Fatal(err)
		}
		if err := a.Start(b.Context()); err != nil {
			b.Fatal(err)
		}
		if _, err := a.IssueX509(b.Context(), time.Now(), request(0)); err != nil {
			b.Fatal(err)
		}
	}
}
