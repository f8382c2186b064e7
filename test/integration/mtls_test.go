package integration

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
)

// How many rotations a conversation is held over, at least, on each end.
const (
	leastSVIDs       = 8
	leastAuthorities = 4 // three rotations of the CA
	leastHandshakes  = 500
	rotationTime     = 150 * time.Second
)

// uids of no user on any machine: the kernel alone vouches for them.
const (
	serverUID = 61001
	clientUID = 61002
)

// Two workloads talk mutual TLS by what go-spiffe gets from the Workload API,
// one new handshake after the other, while their SVIDs, the agent's own and the
// CA are rotated again and again. Not one handshake fails, and no request does.
func TestTwoWorkloadsTrustEachOtherThroughEveryRotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "mtls")
	s := w.startServer(serverOptions{settings: `
		ca_ttl = "18s"
		default_x509_svid_ttl = "6s"
		agent_ttl = "6s"
	`})
	a := w.startAgent(s, "a", agentOptions{})

	t.Run("two uids", func(t *testing.T) {
		t.Parallel()
		if os.Getuid() != 0 {
			t.Skip("only root can start processes of other users; the subtest \"two programs\" tells the two workloads apart by their executables")
		}
		path := w.stage("workload")
		converse(t, w, s, a, "uids",
			workloadOf{path: path, uid: serverUID, selector: fmt.Sprintf("unix:uid:%d", serverUID)},
			workloadOf{path: path, uid: clientUID, selector: fmt.Sprintf("unix:uid:%d", clientUID)})
	})
	t.Run("two programs", func(t *testing.T) {
		t.Parallel()
		one, two := w.stage("one"), w.stage("two")
		converse(t, w, s, a, "programs", workloadOf{path: one, selector: "unix:path:" + one}, workloadOf{path: two, selector: "unix:path:" + two})
	})
	t.Run("requests", func(t *testing.T) {
		t.Parallel()
		requestThroughRotations(t, w, s, a)
	})
}

// requestThroughRotations asks for everything that is signed, all the time, and
// verifies each answer with what is published at that moment.
func requestThroughRotations(t *testing.T, w *world, s *server, a *agent) {
	program, err := os.Executable() // not self: the two programs have this uid too
	if err != nil {
		t.Fatal(err)
	}
	s.create(w.entry("/requests", a.id(), "unix:path:"+program))
	sees(t, a, w.id("/requests"))
	source, err := workloadapi.NewJWTSource(bounded(t), workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+a.socket())))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	keys, n := make(map[string]bool), 0
	eventuallyWithin(t, rotationTime, "enough rotations of the JWT authority", func() error {
		n++
		// A new audience each time, so that none comes from a cache.
		token, err := source.FetchJWTSVID(bounded(t), jwtsvid.Params{Audience: fmt.Sprint(n), Subject: w.id("/requests")})
		if err != nil {
			t.Fatalf("request %d, after %d keys: fetching a JWT-SVID: %v", n, len(keys), err)
		}
		if _, err := jwtsvid.ParseAndValidate(token.Marshal(), source, []string{fmt.Sprint(n)}); err != nil {
			t.Fatalf("request %d, after %d keys: validating a JWT-SVID: %v", n, len(keys), err)
		}
		keys[keyOf(t, token.Marshal())] = true
		minted, err := svidv1.NewSVIDClient(s.conn).MintJWTSVID(bounded(t), &svidv1.MintJWTSVIDRequest{Id: apiID(w.id("/minted")), Audience: []string{"x"}})
		if err != nil {
			t.Fatalf("request %d, after %d keys: minting a JWT-SVID: %v", n, len(keys), err)
		}
		w.secret(minted.GetSvid().GetToken())
		if u, err := fetchX509(t, a.conn); err != nil {
			t.Fatalf("request %d, after %d keys: fetching an X509-SVID: %v", n, len(keys), err)
		} else {
			u.find(w.id("/requests")).verify(t)
		}
		if len(keys) < leastAuthorities {
			return fmt.Errorf("%d keys have signed", len(keys))
		}
		return nil
	})
	t.Logf("%d times four requests, none failed, over %d JWT keys", n, len(keys))
}

// keyOf is the ID of the key that signed a token.
func keyOf(t *testing.T, token string) string {
	t.Helper()
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Headers[0].KeyID
}

// workloadOf is one end: an executable, who runs it, and what it is known by.
type workloadOf struct {
	path     string
	uid      uint32
	selector string
}

func converse(t *testing.T, w *world, s *server, a *agent, name string, server, client workloadOf) {
	serverID, clientID := w.id("/"+name+"/server"), w.id("/"+name+"/client")
	s.create(w.entry(serverID.Path(), a.id(), server.selector))
	s.create(w.entry(clientID.Path(), a.id(), client.selector))
	socket := socketVariable + "=" + a.socket()

	callee := w.play("mtls-server", server.path, server.uid, socket, peerVariable+"="+clientID.String())
	address := callee.await(t, `"address":"([^"]+)"`)[1]
	caller := w.play("mtls-client", client.path, client.uid, socket, peerVariable+"="+serverID.String(), dialVariable+"="+address)

	eventuallyWithin(t, rotationTime, "enough rotations", func() error {
		for _, end := range []*actor{callee, caller} {
			if !end.running() {
				t.Fatalf("%s has ended:\n%s", end.name, end.log)
			}
			c := tally(end.events())
			if c.failed != "" {
				t.Fatalf("%s: after %d handshakes, %d SVIDs, %d authorities: %s", end.name, c.handshakes, len(c.serials), len(c.authorities), c.failed)
			}
			if len(c.serials) < leastSVIDs || len(c.authorities) < leastAuthorities || c.handshakes < leastHandshakes {
				return fmt.Errorf("%s: %d SVIDs, %d authorities, %d handshakes", end.name, len(c.serials), len(c.authorities), c.handshakes)
			}
		}
		return nil
	})
	for _, end := range []struct {
		*actor
		id  spiffeid.ID
		uid uint32
	}{{caller, clientID, client.uid}, {callee, serverID, server.uid}} {
		c := tally(w.finish(end.actor))
		if c.failed != "" {
			t.Errorf("%s: %s", end.name, c.failed)
		}
		if len(c.ids) != 1 || !c.ids[end.id.String()] {
			t.Errorf("%s was %v, want %s and nobody else", end.name, c.ids, end.id)
		}
		if end.uid != 0 && c.uid != int(end.uid) {
			t.Errorf("%s ran as uid %d, want %d", end.name, c.uid, end.uid)
		}
		t.Logf("%s: %d handshakes, none failed, over %d SVIDs of %d authorities", end.name, c.handshakes, len(c.serials), len(c.authorities))
	}
}

// count is what a role's events come to.
type count struct {
	serials, authorities, ids map[string]bool
	handshakes, uid           int
	failed                    string
}

func tally(events []event) count {
	c := count{serials: map[string]bool{}, authorities: map[string]bool{}, ids: map[string]bool{}}
	for _, e := range events {
		c.handshakes, c.uid = max(c.handshakes, e.Count), e.UID
		switch e.Kind {
		case "rotated":
			c.serials[e.Serial], c.authorities[e.Authority], c.ids[e.ID] = true, true, true
		case "failed":
			c.failed = e.Error
		}
	}
	return c
}
