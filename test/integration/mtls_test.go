package integration

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
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
// CA are rotated again and again. Not one handshake fails.
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
