package authorityapi_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/ca"
	"github.com/credence-id/credence/pkg/keys/memkey"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/apitest"
	"github.com/credence-id/credence/pkg/server/authorityapi"
	"github.com/credence-id/credence/pkg/server/rpcerr"
	"github.com/credence-id/credence/pkg/svid"
)

// calls are those of one kind, with an authority ID and a state as answer.
type calls struct {
	get                              func(context.Context) (active, prepared, old *localauthorityv1.AuthorityState, err error)
	prepare, activate, taint, revoke call
}

type call func(context.Context, string) (*localauthorityv1.AuthorityState, error)

func x509Calls(s *authorityapi.Service) calls {
	return calls{
		get: func(ctx context.Context) (_, _, _ *localauthorityv1.AuthorityState, err error) {
			r, err := s.GetX509AuthorityState(ctx, &localauthorityv1.GetX509AuthorityStateRequest{})
			return r.GetActive(), r.GetPrepared(), r.GetOld(), err
		},
		prepare: func(ctx context.Context, _ string) (*localauthorityv1.AuthorityState, error) {
			r, err := s.PrepareX509Authority(ctx, &localauthorityv1.PrepareX509AuthorityRequest{})
			return r.GetPreparedAuthority(), err
		},
		activate: func(ctx context.Context, id string) (*localauthorityv1.AuthorityState, error) {
			r, err := s.ActivateX509Authority(ctx, &localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: id})
			return r.GetActivatedAuthority(), err
		},
		taint: func(ctx context.Context, id string) (*localauthorityv1.AuthorityState, error) {
			r, err := s.TaintX509Authority(ctx, &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: id})
			return r.GetTaintedAuthority(), err
		},
		revoke: func(ctx context.Context, id string) (*localauthorityv1.AuthorityState, error) {
			r, err := s.RevokeX509Authority(ctx, &localauthorityv1.RevokeX509AuthorityRequest{AuthorityId: id})
			return r.GetRevokedAuthority(), err
		},
	}
}

func jwtCalls(s *authorityapi.Service) calls {
	return calls{
		get: func(ctx context.Context) (_, _, _ *localauthorityv1.AuthorityState, err error) {
			r, err := s.GetJWTAuthorityState(ctx, &localauthorityv1.GetJWTAuthorityStateRequest{})
			return r.GetActive(), r.GetPrepared(), r.GetOld(), err
		},
		prepare: func(ctx context.Context, _ string) (*localauthorityv1.AuthorityState, error) {
			r, err := s.PrepareJWTAuthority(ctx, &localauthorityv1.PrepareJWTAuthorityRequest{})
			return r.GetPreparedAuthority(), err
		},
		activate: func(ctx context.Context, id string) (*localauthorityv1.AuthorityState, error) {
			r, err := s.ActivateJWTAuthority(ctx, &localauthorityv1.ActivateJWTAuthorityRequest{AuthorityId: id})
			return r.GetActivatedAuthority(), err
		},
		taint: func(ctx context.Context, id string) (*localauthorityv1.AuthorityState, error) {
			r, err := s.TaintJWTAuthority(ctx, &localauthorityv1.TaintJWTAuthorityRequest{AuthorityId: id})
			return r.GetTaintedAuthority(), err
		},
		revoke: func(ctx context.Context, id string) (*localauthorityv1.AuthorityState, error) {
			r, err := s.RevokeJWTAuthority(ctx, &localauthorityv1.RevokeJWTAuthorityRequest{AuthorityId: id})
			return r.GetRevokedAuthority(), err
		},
	}
}

func service(w *apitest.World) *authorityapi.Service {
	return authorityapi.New(authorityapi.Config{
		Authority: w.Authority, Fresh: func(context.Context) error { return nil },
		UpdateBundle: func(ctx context.Context, change func(*registry.Bundle) error) (*registry.Bundle, error) {
			return w.Registry.UpdateBundle(ctx, w.TrustDomain, change)
		},
		Agent: w.Index.Agent, Logger: slog.New(slog.DiscardHandler),
	})
}

func must(t *testing.T) func(*localauthorityv1.AuthorityState, error) *localauthorityv1.AuthorityState {
	t.Helper()
	return func(s *localauthorityv1.AuthorityState, err error) *localauthorityv1.AuthorityState {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

func wantStatus(t *testing.T, name string, err error, code codes.Code, message string) {
	t.Helper()
	if s := rpcerr.Status(err); s.Code() != code || s.Message() != message {
		t.Errorf("%s:\n got %s %q\nwant %s %q", name, s.Code(), s.Message(), code, message)
	}
}

// scene has an authority in each state, with calls of one kind.
type scene struct {
	calls
	revoked, tainted, old, active, prepared string
}

func newScene(t *testing.T, c calls) scene {
	t.Helper()
	s := scene{calls: c}
	next := func() (old string) {
		active, _, _, err := c.get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		must(t)(c.activate(t.Context(), must(t)(c.prepare(t.Context(), "")).GetAuthorityId()))
		return active.GetAuthorityId()
	}
	s.revoked = next()
	must(t)(c.taint(t.Context(), s.revoked))
	must(t)(c.revoke(t.Context(), s.revoked))
	s.tainted = next()
	must(t)(c.taint(t.Context(), s.tainted))
	s.old = next()
	active, _, _, err := c.get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.active = active.GetAuthorityId()
	s.prepared = must(t)(c.prepare(t.Context(), "")).GetAuthorityId()
	return s
}

// TestStatuses has every refusal, with the code and the text of SPIRE 1.15.3.
func TestStatuses(t *testing.T) {
	t.Parallel()
	const invalid = "invalid authority ID: "
	for kind, c := range map[string]struct {
		calls   func(*authorityapi.Service) calls
		refused func(scene) map[string]status
	}{
		"x509": {x509Calls, func(s scene) map[string]status {
			const taint, revoke = "failed to taint X.509 authority: ", "failed to revoke X.509 authority: "
			return map[string]status{
				"taint tainted":    {s.taint, s.tainted, codes.Internal, taint + "root CA is already tainted"},
				"taint revoked":    {s.taint, s.revoked, codes.Internal, taint + "no ca found with provided subject key ID"},
				"revoke unknown":   {s.revoke, "abcd", codes.InvalidArgument, invalid + "only Old local authority can be revoked"},
				"revoke prepared":  {s.revoke, s.prepared, codes.InvalidArgument, invalid + "only Old local authority can be revoked"},
				"revoke untainted": {s.revoke, s.old, codes.Internal, revoke + "it is not possible to revoke an untainted root CA"},
				"revoke revoked":   {s.revoke, s.revoked, codes.Internal, revoke + "no root CA found with provided subject key ID"},
			}
		}},
		"jwt": {jwtCalls, func(s scene) map[string]status {
			const taint, revoke = "failed to taint JWT authority: ", "failed to revoke JWT authority: "
			return map[string]status{
				"taint tainted":    {s.taint, s.tainted, codes.Internal, taint + "key is already tainted"},
				"taint revoked":    {s.taint, s.revoked, codes.Internal, taint + "no JWT Key found with provided key ID"},
				"revoke unknown":   {s.revoke, "abcd", codes.InvalidArgument, invalid + "no JWT authority found with provided authority ID"},
				"revoke prepared":  {s.revoke, s.prepared, codes.InvalidArgument, invalid + "unable to use a prepared key"},
				"revoke untainted": {s.revoke, s.old, codes.Internal, revoke + "it is not possible to revoke an untainted key"},
				"revoke revoked":   {s.revoke, s.revoked, codes.Internal, revoke + "no JWT Key found with provided key ID"},
			}
		}},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, c.calls(service(apitest.New(t, apitest.Options{}))))
			refused := c.refused(s)
			for name, r := range s.everyKind() {
				refused[name] = r
			}
			for name, r := range refused {
				_, err := r.call(t.Context(), r.id)
				wantStatus(t, name, err, r.code, r.message)
			}
		})
	}
}

type status struct {
	call    call
	id      string
	code    codes.Code
	message string
}

// everyKind are the refusals that do not depend on the kind.
func (s scene) everyKind() map[string]status {
	return map[string]status{
		"activate nothing": {s.activate, "", codes.InvalidArgument, "no authority ID provided"},
		"activate unknown": {s.activate, "abcd", codes.InvalidArgument, "unexpected authority ID"},
		"activate active":  {s.activate, s.active, codes.InvalidArgument, "unexpected authority ID"},
		"activate old":     {s.activate, s.old, codes.Internal, "only Prepared authorities can be activated: unsupported local authority status: OLD"},
		"taint nothing":    {s.taint, "", codes.InvalidArgument, "no authority ID provided"},
		"taint unknown":    {s.taint, "abcd", codes.InvalidArgument, "unexpected authority ID"},
		"taint active":     {s.taint, s.active, codes.InvalidArgument, "unable to taint current local authority"},
		"taint prepared":   {s.taint, s.prepared, codes.InvalidArgument, "only Old local authorities can be tainted: unsupported local authority status: PREPARED"},
		"revoke nothing":   {s.revoke, "", codes.InvalidArgument, "invalid authority ID: no authority ID provided"},
		"revoke active":    {s.revoke, s.active, codes.InvalidArgument, "invalid authority ID: unable to use current authority"},
	}
}

// TestStates follows the answers, field by field, through one sequence.
func TestStates(t *testing.T) {
	t.Parallel()
	for kind, of := range map[string]func(*authorityapi.Service) calls{"x509": x509Calls, "jwt": jwtCalls} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			c := of(service(apitest.New(t, apitest.Options{})))
			var want [3]*localauthorityv1.AuthorityState // active, prepared, old
			look := func() {
				t.Helper()
				active, prepared, old, err := c.get(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, [3]*localauthorityv1.AuthorityState{active, prepared, old}, protocmp.Transform()); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
			same := func(want, got *localauthorityv1.AuthorityState) {
				t.Helper()
				if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
			first, _, _, err := c.get(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if left := time.Until(time.Unix(first.GetExpiresAt(), 0)); left < 23*time.Hour || left > 24*time.Hour {
				t.Errorf("the authority ends in %s", left)
			}
			want[0] = first
			look()
			second := must(t)(c.prepare(t.Context(), ""))
			want[1] = second
			look()
			same(second, must(t)(c.activate(t.Context(), second.GetAuthorityId())))
			want = [3]*localauthorityv1.AuthorityState{second, nil, first}
			look()
			only := &localauthorityv1.AuthorityState{AuthorityId: first.GetAuthorityId()}
			tainted := first
			if kind == "jwt" {
				tainted = only // as SPIRE has it
			}
			same(tainted, must(t)(c.taint(t.Context(), first.GetAuthorityId())))
			look()
			same(only, must(t)(c.revoke(t.Context(), first.GetAuthorityId())))
			look()
			third := must(t)(c.prepare(t.Context(), ""))
			want[1] = third
			look()
			same(third, must(t)(c.activate(t.Context(), third.GetAuthorityId())))
			want = [3]*localauthorityv1.AuthorityState{third, nil, second}
			look()
		})
	}
}

// TestNotThere: what this server does not have is refused with SPIRE's code, and
// a reason.
func TestNotThere(t *testing.T) {
	t.Parallel()
	s := service(apitest.New(t, apitest.Options{}))
	ctx := t.Context()
	for name, c := range map[string]struct {
		call func() error
		code codes.Code
		text [2]string
	}{
		"taint upstream": {func() error {
			_, err := s.TaintX509UpstreamAuthority(ctx, &localauthorityv1.TaintX509UpstreamAuthorityRequest{SubjectKeyId: "ab"})
			return err
		}, codes.FailedPrecondition, [2]string{"upstream authority is not configured", "TaintX509Authority"}},
		"revoke upstream": {func() error {
			_, err := s.RevokeX509UpstreamAuthority(ctx, &localauthorityv1.RevokeX509UpstreamAuthorityRequest{})
			return err
		}, codes.FailedPrecondition, [2]string{"upstream authority is not configured", "RevokeX509Authority"}},
		"get WIT": {func() error {
			_, err := s.GetWITAuthorityState(ctx, &localauthorityv1.GetWITAuthorityStateRequest{})
			return err
		}, codes.Unimplemented, noWIT},
		"prepare WIT": {func() error {
			_, err := s.PrepareWITAuthority(ctx, &localauthorityv1.PrepareWITAuthorityRequest{})
			return err
		}, codes.Unimplemented, noWIT},
		"activate WIT": {func() error {
			_, err := s.ActivateWITAuthority(ctx, &localauthorityv1.ActivateWITAuthorityRequest{})
			return err
		}, codes.Unimplemented, noWIT},
		"taint WIT": {func() error {
			_, err := s.TaintWITAuthority(ctx, &localauthorityv1.TaintWITAuthorityRequest{})
			return err
		}, codes.Unimplemented, noWIT},
		"revoke WIT": {func() error {
			_, err := s.RevokeWITAuthority(ctx, &localauthorityv1.RevokeWITAuthorityRequest{})
			return err
		}, codes.Unimplemented, noWIT},
	} {
		got := rpcerr.Status(c.call())
		if got.Code() != c.code || !strings.HasPrefix(got.Message(), c.text[0]) || !strings.Contains(got.Message(), c.text[1]) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

var noWIT = [2]string{"WIT-SVID functionality is not yet implemented", "X.509 and JWT"}

// TestJWTDisabled: with disable_jwt_svids no call about JWT authorities works,
// and those about X.509 authorities do.
func TestJWTDisabled(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{DisableJWT: true})
	s := authorityapi.New(authorityapi.Config{
		Authority: w.Authority, DisableJWT: true, Fresh: func(context.Context) error { return nil },
		Agent: w.Index.Agent, Logger: slog.New(slog.DiscardHandler),
	})
	c := jwtCalls(s)
	_, _, _, err := c.get(t.Context())
	wantStatus(t, "get", err, codes.Unimplemented, "JWT functionality is disabled")
	for name, call := range map[string]call{"prepare": c.prepare, "activate": c.activate, "taint": c.taint, "revoke": c.revoke} {
		_, err := call(t.Context(), "")
		wantStatus(t, name, err, codes.Unimplemented, "JWT functionality is disabled")
	}
	newScene(t, x509Calls(s))
}

// TestInitializing: before there is an active authority.
func TestInitializing(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	a, err := ca.New(ca.Config{TrustDomain: w.TrustDomain, ServerID: "another", Registry: w.Registry, Keys: memkey.New()})
	if err != nil {
		t.Fatal(err)
	}
	s := authorityapi.New(authorityapi.Config{Authority: a, Fresh: func(context.Context) error { return nil }})
	for kind, c := range map[string]calls{"x509": x509Calls(s), "jwt": jwtCalls(s)} {
		_, _, _, err := c.get(t.Context())
		wantStatus(t, kind+" get", err, codes.Unavailable, "server is initializing")
		for name, call := range map[string]call{"prepare": c.prepare, "activate": c.activate, "taint": c.taint, "revoke": c.revoke} {
			_, err := call(t.Context(), "abcd")
			wantStatus(t, kind+" "+name, err, codes.Unavailable, "server is initializing")
		}
	}
}

// TestInvariants: what must not sign is FailedPrecondition, with the rule.
func TestInvariants(t *testing.T) {
	t.Parallel()
	t.Run("life", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			w := apitest.New(t, apitest.Options{})
			c := x509Calls(service(w))
			p := must(t)(c.prepare(t.Context(), ""))
			time.Sleep(23*time.Hour + 30*time.Minute)
			_, err := c.activate(t.Context(), p.GetAuthorityId())
			wantStatus(t, "activate", err, codes.FailedPrecondition, "authority "+p.GetAuthorityId()+
				" cannot be activated: it has 30m0s left, and needs 1h0m0s for what it would sign; prepare another")
		})
	})
	t.Run("published", func(t *testing.T) {
		t.Parallel()
		w := apitest.New(t, apitest.Options{})
		c := jwtCalls(service(w))
		p := must(t)(c.prepare(t.Context(), ""))
		_, err := w.Registry.UpdateBundle(t.Context(), w.TrustDomain, func(b *registry.Bundle) error {
			b.JWTAuthorities = nil
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.activate(t.Context(), p.GetAuthorityId())
		wantStatus(t, "activate", err, codes.FailedPrecondition, "authority "+p.GetAuthorityId()+
			" cannot be activated: it is not in the trust bundle; it is being published again, try again")
	})
}

// TestStoreAway: the code of the store's error, with what was being done.
func TestStoreAway(t *testing.T) {
	t.Parallel()
	var down apitest.Faults
	w := apitest.New(t, apitest.Options{Wrap: down.Wrap})
	c := x509Calls(service(w))
	old, _, _, err := c.get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const away = "the store is not available now: try again"
	steps := []struct {
		name string
		call call
		id   string
	}{
		{"prepare", c.prepare, ""},
		{"activate", c.activate, ""},
		{"taint", c.taint, old.GetAuthorityId()},
		{"revoke", c.revoke, old.GetAuthorityId()},
	}
	for i, step := range steps {
		down.FailAt(1, false)
		_, err := step.call(t.Context(), step.id)
		wantStatus(t, step.name, err, codes.Unavailable, "failed to "+step.name+" X.509 authority: "+away)
		done := must(t)(step.call(t.Context(), step.id))
		if step.name == "prepare" {
			steps[i+1].id = done.GetAuthorityId()
		}
	}
}

// TestAudit has an intent and an outcome for every change asked for.
func TestAudit(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	var records lines
	s := authorityapi.New(authorityapi.Config{
		Authority: w.Authority, Fresh: func(context.Context) error { return nil },
		Agent: w.Index.Agent, Logger: slog.New(slog.DiscardHandler),
		Audit: audit.New(slog.New(slog.NewTextHandler(&records, nil))),
	})
	newScene(t, x509Calls(s))
	newScene(t, jwtCalls(s))
	_, err := s.TaintX509Authority(t.Context(), &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: "abcd"})
	if err == nil {
		t.Error("an unknown authority was tainted")
	}
	for text, n := range map[string]int{
		`msg="audit intent"`: 2*10 + 1, `msg="audit outcome"`: 2*10 + 1, "outcome=done": 2 * 10, "outcome=refused": 1,
		"action=x509authority.taint subject=abcd": 2, "action=jwtauthority.revoke": 2,
	} {
		if got := records.count(text); got != n {
			t.Errorf("%q is there %d times, want %d:\n%s", text, got, n, &records)
		}
	}
}

// TestStrandedAgentsAreCounted: revoking says how many agents did not renew.
func TestStrandedAgentsAreCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := apitest.New(t, apitest.Options{})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			if err := w.Authority.Run(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("Run: %v", err)
			}
		})
		defer running.Wait()
		defer cancel()
		var logged lines
		s := authorityapi.New(authorityapi.Config{
			Authority: w.Authority, Fresh: func(context.Context) error { return nil },
			Agent: w.Index.Agent, Logger: slog.New(slog.NewTextHandler(&logged, nil)),
		})
		c := x509Calls(s)
		attest := func(name string) {
			id, err := spiffeid.FromPath(w.TrustDomain, "/spire/agent/test/"+name)
			if err != nil {
				t.Fatal(err)
			}
			out, err := w.Authority.IssueX509(t.Context(), time.Now(), svid.X509Request{
				Kind: svid.Agent, ID: id, AgentID: id, PublicKey: apitest.NewKey(t).Public(),
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Registry.AttestAgent(t.Context(), &registry.Agent{
				ID: id, AttestationType: "test", Serial: out.Serial, NotAfter: out.NotAfter, CanReattest: true,
			}, "", nil); err != nil {
				t.Fatal(err)
			}
			w.Fresh(t)
		}
		for _, name := range []string{"a", "b", "c", "d"} {
			attest(name)
		}
		synctest.Wait()
		old, _, _, err := c.get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		must(t)(c.activate(t.Context(), must(t)(c.prepare(t.Context(), "")).GetAuthorityId()))
		attest("a") // the only one that renews
		must(t)(c.taint(t.Context(), old.GetAuthorityId()))
		if text := logged.String(); text != "" {
			t.Errorf("before revoking: %s", text)
		}
		must(t)(c.revoke(t.Context(), old.GetAuthorityId()))
		if logged.count("they must attest again") != 1 || logged.count("count=3") != 1 {
			t.Errorf("the log says: %s", &logged)
		}
	})
}

// lines keeps what is logged.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string { return l.text.String() }

func (l *lines) count(text string) int { return strings.Count(l.text.String(), text) }
