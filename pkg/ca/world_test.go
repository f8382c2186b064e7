package ca_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/ca"
	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/keys/diskkey"
	"github.com/credence-id/credence/pkg/keys/memkey"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
	"github.com/credence-id/credence/pkg/svid"
	recordv1 "github.com/credence-id/credence/proto/record/v1"
)

var (
	td      = spiffeid.RequireTrustDomainFromString("example.org")
	webID   = spiffeid.RequireFromString("spiffe://example.org/web")
	leafKey = sync.OnceValue(func() crypto.Signer {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err)
		}
		return key
	})
)

// world is a trust domain: a store on disk, and the SVIDs that its servers
// issued and that must verify until they expire.
type world struct {
	t     testing.TB
	dir   string
	store store.Store
	reg   *registry.Registry
	logs  *logs

	x509 []issuedX509
	jwt  []issuedJWT
}

type issuedX509 struct {
	leaf   *x509.Certificate
	chain  []*x509.Certificate
	issued time.Time
}

type issuedJWT struct {
	token  string
	issued time.Time
	until  time.Time
}

// bubble runs the test with a clock of its own.
func bubble(t *testing.T, fn func(*testing.T, *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		leafKey()
		fn(t, newWorld(t))
	})
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), logs: &logs{}}
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(w.dir, "store"), MmapSize: 1 << 24})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	w.store = s
	if w.reg, err = registry.New(t.Context(), registry.Config{Store: s, TrustDomain: td}); err != nil {
		t.Fatal(err)
	}
	return w
}

// logs keeps what is logged, as text.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

// server is one process: an authority that runs and follows the log.
type server struct {
	*ca.Authority
	w      *world
	faults *faults
	stop   func()
}

func (w *world) config(id string, m keys.Manager) ca.Config {
	return ca.Config{
		TrustDomain: td, ServerID: id, Registry: w.reg, Keys: m,
		Logger: slog.New(slog.NewTextHandler(w.logs, nil)),
	}
}

// diskKeys opens the keys of a server, which outlive its processes.
func (w *world) diskKeys(id string) keys.Manager {
	w.t.Helper()
	m, err := diskkey.New(filepath.Join(w.dir, id+".keys"))
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// start starts a process, or returns the error of its Start.
func (w *world) start(cfg ca.Config) (*server, error) {
	w.t.Helper()
	f := newFaults(cfg.Registry, cfg.Keys)
	cfg.Registry, cfg.Keys = f, f.manager()
	return w.startWith(cfg, f)
}

func (w *world) startWith(cfg ca.Config, f *faults) (*server, error) {
	w.t.Helper()
	a, err := ca.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	if err := a.Start(ctx); err != nil {
		cancel()
		return nil, err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.Run(ctx); !errors.Is(err, context.Canceled) {
			w.t.Errorf("Run: %v", err)
		}
	})
	wg.Go(func() {
		err := w.reg.Follow(ctx, func(c *registry.Commit) error {
			for _, b := range c.Bundles {
				if b.TrustDomain == td {
					a.ObserveBundle(b.Now)
				}
			}
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			w.t.Errorf("Follow: %v", err)
		}
	})
	return &server{Authority: a, w: w, faults: f, stop: func() { cancel(); wg.Wait() }}, nil
}

func (w *world) mustStart(cfg ca.Config) *server {
	w.t.Helper()
	s, err := w.start(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func request(ttl time.Duration) svid.X509Request {
	return svid.X509Request{Kind: svid.Workload, ID: webID, PublicKey: leafKey().Public(), TTL: ttl, EntryID: "entry-1"}
}

func jwtRequest(ttl time.Duration) svid.JWTRequest {
	return svid.JWTRequest{ID: webID, Audience: []string{"billing"}, TTL: ttl, EntryID: "entry-1"}
}

// issue issues one SVID of each kind, which the world remembers.
func (s *server) issue(ttl time.Duration) error {
	now := time.Now()
	x, err := s.IssueX509(s.w.t.Context(), now, request(ttl))
	if err != nil {
		return err
	}
	chain, err := x509.ParseCertificates(bytes.Join(x.Chain, nil))
	if err != nil {
		return err
	}
	s.w.x509 = append(s.w.x509, issuedX509{leaf: chain[0], chain: chain[1:], issued: now})
	j, err := s.IssueJWT(s.w.t.Context(), now, jwtRequest(ttl))
	if err != nil {
		return err
	}
	s.w.jwt = append(s.w.jwt, issuedJWT{token: j.Token, issued: now, until: j.ExpiresAt})
	return nil
}

func (s *server) mustIssue(ttl time.Duration) {
	s.w.t.Helper()
	if err := s.issue(ttl); err != nil {
		s.w.t.Fatalf("%s: %v", time.Now(), err)
	}
}

func (w *world) bundle() *registry.Bundle {
	w.t.Helper()
	b, err := w.reg.LoadBundle(w.t.Context(), td)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// verify holds every SVID that has not expired against the bundle as it is
// published now.
func (w *world) verify() {
	w.t.Helper()
	now, b := time.Now(), w.bundle()
	roots := x509.NewCertPool()
	for _, a := range b.X509Authorities {
		c, err := x509.ParseCertificate(a.DER)
		if err != nil {
			w.t.Fatal(err)
		}
		roots.AddCert(c)
	}
	authorities := map[string]crypto.PublicKey{}
	for _, a := range b.JWTAuthorities {
		pub, err := x509.ParsePKIXPublicKey(a.PKIX)
		if err != nil {
			w.t.Fatal(err)
		}
		authorities[a.KeyID] = pub
	}
	var x []issuedX509
	for _, i := range w.x509 {
		if now.After(i.leaf.NotAfter) {
			continue
		}
		x = append(x, i)
		middle := x509.NewCertPool()
		for _, c := range i.chain {
			middle.AddCert(c)
		}
		if _, err := i.leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: middle, CurrentTime: now}); err != nil {
			w.t.Errorf("%s: an X509-SVID issued %s ago does not verify: %v", now, now.Sub(i.issued), err)
		}
	}
	var j []issuedJWT
	bundle := jwtbundle.FromJWTAuthorities(td, authorities)
	for _, i := range w.jwt {
		if now.After(i.until) {
			continue
		}
		j = append(j, i)
		if _, err := svid.ValidateJWT(now, i.token, bundle, "billing"); err != nil {
			w.t.Errorf("%s: a JWT-SVID issued %s ago does not verify: %v", now, now.Sub(i.issued), err)
		}
	}
	w.x509, w.jwt = x, j
	if w.t.Failed() {
		w.t.FailNow()
	}
}

// states counts a server's authorities by state.
func states(views []ca.View) map[string]int {
	m := map[string]int{}
	for _, v := range views {
		m[v.State]++
	}
	return m
}

func activeOf(views []ca.View) ca.View {
	for _, v := range views {
		if v.State == "active" {
			return v
		}
	}
	return ca.View{}
}

// faults stands between an authority and what it depends on, counts what it
// does and makes it fail.
type faults struct {
	reg  ca.Registry
	keys keys.Manager

	mu sync.Mutex
	// count is how many operations with an effect there were; crashAt makes
	// the process die in that one, after its effect if late is set.
	count, crashAt int
	late           bool
	dead           bool
	// down, when set, is what the store answers.
	down error
	// hang makes writes wait for their context, without the lock.
	hang bool
	// downAfter fails with it after the commit.
	downAfter error
}

var errCrashed = errors.New("the process has crashed")

func newFaults(reg ca.Registry, m keys.Manager) *faults { return &faults{reg: reg, keys: m} }

func (f *faults) set(fn func(*faults)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn(f)
}

// effect carries out an operation that changes something, unless the process
// is dead, or dies before or after it.
func (f *faults) effect(fn func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return errCrashed
	}
	f.count++
	dies := f.count == f.crashAt
	if dies && !f.late {
		f.dead = true
		return errCrashed
	}
	err := fn()
	if dies {
		f.dead = true
		return errCrashed
	}
	return err
}

func (f *faults) crashed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dead
}

func (f *faults) hangs() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hang
}

func (f *faults) storeDown() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return errCrashed
	}
	return f.down
}

func (f *faults) UpdateAuthorities(ctx context.Context, id string, fn func(*registry.Bundle, *recordv1.Journal) error) (b *registry.Bundle, j *recordv1.Journal, err error) {
	if err := f.storeDown(); err != nil {
		return nil, nil, err
	}
	if f.hangs() {
		<-ctx.Done()
		return nil, nil, ctx.Err()
	}
	err = f.effect(func() (err error) {
		b, j, err = f.reg.UpdateAuthorities(ctx, id, fn)
		if err == nil {
			err = f.downAfter
		}
		return err
	})
	return b, j, err
}

func (f *faults) FindJournal(ctx context.Context, match func(*recordv1.Journal) bool) (string, error) {
	if err := f.storeDown(); err != nil {
		return "", err
	}
	return f.reg.FindJournal(ctx, match)
}

func (f *faults) UpdateGoneAuthorities(ctx context.Context, id string, fn func(*registry.Bundle, *recordv1.Journal) error) error {
	if err := f.storeDown(); err != nil {
		return err
	}
	return f.effect(func() error { return f.reg.UpdateGoneAuthorities(ctx, id, fn) })
}

func (f *faults) LoadJournal(ctx context.Context, id string) (*recordv1.Journal, error) {
	if err := f.storeDown(); err != nil {
		return nil, err
	}
	return f.reg.LoadJournal(ctx, id)
}

func (f *faults) LoadBundle(ctx context.Context, td spiffeid.TrustDomain) (*registry.Bundle, error) {
	if err := f.storeDown(); err != nil {
		return nil, err
	}
	return f.reg.LoadBundle(ctx, td)
}

// manager is the key manager behind the same faults.
func (f *faults) manager() keys.Manager { return faultyKeys{f.keys, f} }

type faultyKeys struct {
	keys.Manager
	f *faults
}

func (k faultyKeys) Generate(ctx context.Context, id string, t keys.Type) (key keys.Key, err error) {
	err = k.f.effect(func() (err error) {
		key, err = k.Manager.Generate(ctx, id, t)
		return err
	})
	return key, err
}

func (k faultyKeys) Delete(ctx context.Context, id string) error {
	return k.f.effect(func() error { return k.Manager.Delete(ctx, id) })
}

func memory() keys.Manager { return memkey.New() }

var agentID = spiffeid.RequireFromString("spiffe://example.org/spire/agent/join_token/abc")
