package integration

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
)

const (
	// taintedEntries is how many identities one of the workloads has.
	taintedEntries = 20
	// calm is how many handshakes are made between two steps of the operator.
	calm = 60
)

// taintTime is within what everything is replaced that a tainted authority
// signed: a second. `make timing` holds that for programs as they are shipped;
// the race detector makes them several times slower.
var taintTime = map[bool]time.Duration{false: time.Second, true: 3 * time.Second}[raceEnabled]

func (s *server) authorities() localauthorityv1.LocalAuthorityClient {
	return localauthorityv1.NewLocalAuthorityClient(s.conn)
}

// prepareX509 and the others are an operator's steps.
func (s *server) prepareX509() string {
	s.t.Helper()
	r, err := s.authorities().PrepareX509Authority(bounded(s.t), &localauthorityv1.PrepareX509AuthorityRequest{})
	if err != nil {
		s.t.Fatalf("preparing an authority: %v", err)
	}
	return r.GetPreparedAuthority().GetAuthorityId()
}

func (s *server) activateX509(id string) {
	s.t.Helper()
	if _, err := s.authorities().ActivateX509Authority(bounded(s.t), &localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: id}); err != nil {
		s.t.Fatalf("activating an authority: %v", err)
	}
}

func (s *server) taintX509(id string) {
	s.t.Helper()
	if _, err := s.authorities().TaintX509Authority(bounded(s.t), &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: id}); err != nil {
		s.t.Fatalf("tainting an authority: %v", err)
	}
}

func (s *server) revokeX509(id string) {
	s.t.Helper()
	if _, err := s.authorities().RevokeX509Authority(bounded(s.t), &localauthorityv1.RevokeX509AuthorityRequest{AuthorityId: id}); err != nil {
		s.t.Fatalf("revoking an authority: %v", err)
	}
}

func (s *server) activeX509() string {
	s.t.Helper()
	r, err := s.authorities().GetX509AuthorityState(bounded(s.t), &localauthorityv1.GetX509AuthorityStateRequest{})
	if err != nil {
		s.t.Fatalf("getting the authorities: %v", err)
	}
	return r.GetActive().GetAuthorityId()
}

// published says of each X.509 authority in the bundle whether it is tainted.
func (s *server) published() map[string]bool {
	s.t.Helper()
	out := map[string]bool{}
	for _, a := range s.bundle().GetX509Authorities() {
		cert, err := x509.ParseCertificate(a.GetAsn1())
		if err != nil {
			s.t.Fatal(err)
		}
		out[hex.EncodeToString(cert.SubjectKeyId)] = a.GetTainted()
	}
	return out
}

// shows is the authority of the certificate that the server shows.
func (s *server) shows() string {
	s.t.Helper()
	conn, err := tls.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		s.t.Fatalf("connecting to the server: %v", err)
	}
	defer conn.Close()
	return hex.EncodeToString(conn.ConnectionState().PeerCertificates[0].AuthorityKeyId)
}

// signedBy says whether all SVIDs of the update are of the authority.
func (u x509Update) signedBy(authority string) error {
	for _, s := range u.svids {
		if got := hex.EncodeToString(s.leaf.AuthorityKeyId); got != authority {
			return fmt.Errorf("the SVID of %s is of %s", s.id, got)
		}
	}
	return u.err
}

// knows says whether the update's bundle has the authority.
func (u x509Update) knows(authority string) bool {
	want, err := hex.DecodeString(authority)
	if err != nil || len(u.svids) == 0 {
		return false
	}
	for _, c := range u.svids[0].roots {
		if bytes.Equal(c.SubjectKeyId, want) {
			return true
		}
	}
	return false
}

// ends are two workloads that talk.
type ends []*actor

// more waits for so many more handshakes of each, none of which may fail.
func (e ends) more(t *testing.T, n int) {
	t.Helper()
	from := make([]int, len(e))
	for i, end := range e {
		from[i] = end.handshakes(t)
	}
	eventually(t, "more handshakes", func() error {
		for i, end := range e {
			if got := end.handshakes(t) - from[i]; got < n {
				return fmt.Errorf("%s: %d of %d", end.name, got, n)
			}
		}
		return nil
	})
}

func (a *actor) handshakes(t *testing.T) int {
	t.Helper()
	c := tally(a.events())
	if c.failed != "" {
		t.Fatalf("%s: after %d handshakes: %s", a.name, c.handshakes, c.failed)
	}
	return c.handshakes
}

// authority is that of the newest SVID an actor has.
func (a *actor) authority() (id string) {
	for _, e := range a.events() {
		if e.Kind == "rotated" {
			id = e.Authority
		}
	}
	return id
}

// An operator withdraws trust from an authority: the next is prepared and
// activated, the old one is tainted, and revoked when everything it signed is
// replaced: within a second. Two workloads shake hands all the time; not once in
// vain.
func TestTaintedAuthorityIsReplacedAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "taint")
	s := w.startServer(serverOptions{})
	a := w.startAgent(s, "a", agentOptions{})
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var mine []fmt.Stringer
	for i := range taintedEntries {
		id := w.id(fmt.Sprint("/mine/", i))
		s.create(w.entry(id.Path(), a.id(), "unix:path:"+program))
		mine = append(mine, id)
	}
	stream := streamOf(t, a, mine...)
	talking := w.talk(s, a)
	tokens := newTokens(t, a)

	// 1. Two rotations, so that the second finds an old one beside it.
	for round := range 2 {
		old := s.activeX509()
		next := s.prepareX509()
		stream.until("the prepared authority is known", func(u x509Update) bool { return u.knows(next) })
		talking.more(t, calm)
		s.activateX509(next)
		talking.more(t, calm)
		if err := stream.last.signedBy(old); err != nil {
			t.Errorf("before anything was tainted: %v", err)
		}
		renewals, begin := a.renewals(), time.Now()

		// 2. Everything is replaced, and meanwhile the old one still verifies.
		s.taintX509(old)
		if got := s.published(); !got[old] || got[next] {
			t.Errorf("tainted in the bundle are %v, want %s", got, old)
		}
		stream.untilWithin(taintTime, "SVIDs of the new authority", func(u x509Update) bool { return u.signedBy(next) == nil })
		eventuallyWithin(t, taintTime-time.Since(begin), "everybody has another SVID", func() error {
			for _, end := range talking {
				if got := end.authority(); got != next {
					return fmt.Errorf("%s has one of %s", end.name, got)
				}
			}
			if a.renewals() == renewals {
				return fmt.Errorf("the agent has renewed its own %d times", renewals)
			}
			if got := s.shows(); got != next {
				return fmt.Errorf("the server shows one of %s", got)
			}
			return nil
		})
		t.Logf("round %d: all is replaced after %v", round, time.Since(begin))
		talking.more(t, calm)

		// 3. Nothing is left to be ended.
		s.revokeX509(old)
		if _, there := s.published()[old]; there {
			t.Error("the revoked authority is in the bundle")
		}
		u := stream.until("the revoked authority is gone", func(u x509Update) bool { return !u.knows(old) })
		for _, i := range u.svids {
			i.verify(t)
		}
		talking.more(t, calm)
		s.create(w.entry(fmt.Sprint("/later/", round), a.id(), self())) // the agent is still in touch
	}
	tokens.taintAndRevoke(t, s)

	// 4. A restart remembers.
	s.stop()
	s.start()
	r, err := s.authorities().GetX509AuthorityState(bounded(t), &localauthorityv1.GetX509AuthorityStateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.authorities().TaintX509Authority(bounded(t), &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: r.GetOld().GetAuthorityId()})
	if err == nil || !strings.Contains(err.Error(), "no ca found") {
		t.Errorf("tainting what was revoked: %v", err)
	}
	talking.more(t, calm)
	for _, end := range talking {
		c := tally(w.finish(end))
		t.Logf("%s: %d handshakes, %d SVIDs of %d authorities, failed: %q", end.name, c.handshakes, len(c.serials), len(c.authorities), c.failed)
	}
}

// talk starts two workloads, each known by its executable.
func (w *world) talk(s *server, a *agent) ends {
	w.t.Helper()
	one, two := w.stage("callee"), w.stage("caller")
	s.create(w.entry("/callee", a.id(), "unix:path:"+one))
	s.create(w.entry("/caller", a.id(), "unix:path:"+two))
	socket := socketVariable + "=" + a.socket()
	callee := w.play("mtls-server", one, 0, socket, peerVariable+"="+w.id("/caller").String())
	address := callee.await(w.t, `"address":"([^"]+)"`)[1]
	caller := w.play("mtls-client", two, 0, socket, peerVariable+"="+w.id("/callee").String(), dialVariable+"="+address)
	return ends{callee, caller}
}

// tokens is a workload that asks for the same JWT-SVID again and again, which
// its agent keeps.
type tokens struct {
	source *workloadapi.JWTSource
	first  string
}

func newTokens(t *testing.T, a *agent) *tokens {
	t.Helper()
	source, err := workloadapi.NewJWTSource(bounded(t), workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+a.socket())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = source.Close() })
	k := &tokens{source: source}
	k.first = k.fetch(t)
	return k
}

func (k *tokens) fetch(t *testing.T) string {
	t.Helper()
	token, err := k.source.FetchJWTSVID(bounded(t), jwtsvid.Params{Audience: "ledger"})
	if err != nil {
		t.Fatalf("fetching a JWT-SVID: %v", err)
	}
	return token.Marshal()
}

// taintAndRevoke does with the JWT authority what was done with X.509's.
func (k *tokens) taintAndRevoke(t *testing.T, s *server) {
	t.Helper()
	old := keyOf(t, k.first)
	p, err := s.authorities().PrepareJWTAuthority(bounded(t), &localauthorityv1.PrepareJWTAuthorityRequest{})
	if err != nil {
		t.Fatal(err)
	}
	next := p.GetPreparedAuthority().GetAuthorityId()
	if _, err := s.authorities().ActivateJWTAuthority(bounded(t), &localauthorityv1.ActivateJWTAuthorityRequest{AuthorityId: next}); err != nil {
		t.Fatal(err)
	}
	if got := keyOf(t, k.fetch(t)); got != old {
		t.Errorf("before anything was tainted a token is of %s, want the one kept, of %s", got, old)
	}
	if _, err := s.authorities().TaintJWTAuthority(bounded(t), &localauthorityv1.TaintJWTAuthorityRequest{AuthorityId: old}); err != nil {
		t.Fatal(err)
	}
	eventuallyWithin(t, taintTime, "a token of the new authority", func() error {
		if got := keyOf(t, k.fetch(t)); got != next {
			return fmt.Errorf("it is of %s", got)
		}
		return nil
	})
	if _, err := jwtsvid.ParseAndValidate(k.first, k.source, []string{"ledger"}); err != nil {
		t.Errorf("a token of a tainted authority does not verify: %v", err)
	}
	if _, err := s.authorities().RevokeJWTAuthority(bounded(t), &localauthorityv1.RevokeJWTAuthorityRequest{AuthorityId: old}); err != nil {
		t.Fatal(err)
	}
	eventuallyWithin(t, taintTime, "the token of a revoked authority is refused", func() error {
		if _, err := jwtsvid.ParseAndValidate(k.first, k.source, []string{"ledger"}); err == nil {
			return fmt.Errorf("a token of %s verifies", old)
		}
		return nil
	})
	if _, err := jwtsvid.ParseAndValidate(k.fetch(t), k.source, []string{"ledger"}); err != nil {
		t.Errorf("a token of the new authority: %v", err)
	}
}

// An agent that was away while the authority of its SVID was tainted replaces
// everything as soon as it is back; one that was away until it was revoked must
// attest again, says so, and does.
func TestAgentAwayDuringATaint(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "away")
	s := w.startServer(serverOptions{})
	a := w.startAgent(s, "a", agentOptions{settings: `persist_svids = true`})
	s.create(w.entry("/web", a.id(), self()))
	rotate := func() (old, next string) {
		old, next = s.activeX509(), s.prepareX509()
		eventually(t, "the prepared authority is known", func() error {
			u, err := fetchX509(t, a.conn)
			if err == nil && !u.knows(next) {
				err = errors.New("it is not")
			}
			return err
		})
		a.stop() // which keeps what it knows
		s.activateX509(next)
		s.taintX509(old)
		return old, next
	}

	old, next := rotate()
	a.start()
	streamX509(t, a.conn).until("an SVID of the new authority", func(u x509Update) bool {
		return u.err == nil && len(u.svids) == 1 && u.signedBy(next) == nil
	})
	eventually(t, "the agent has renewed its own SVID", func() error {
		if a.renewals() == 0 {
			return errors.New("it has not")
		}
		return nil
	})
	s.revokeX509(old)

	old, _ = rotate()
	s.revokeX509(old)
	a.run()
	a.proc.await(t, "authority of the agent's SVID was revoked while the agent was away, so it must attest again.*credence-server token generate")
	if !a.proc.running() {
		t.Error("the agent gave up: what it holds may be good")
	}
	a.stop()
	a.token = s.token()
	a.attest()
	s.create(w.entry("/again", a.id(), self()))
	sees(t, a, w.id("/again"))
}
