package integration

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
)

// Server and agent were off for so long that everything has expired: the
// authorities, the server's own certificate, the agent's, the workloads'. One
// restart of each heals it, the agent with a new token and the new bundle, as for
// a new node; nothing is deleted by hand (S28).
func TestS28_OneRestartHealsWhenEverythingHasExpired(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "heal")
	s := w.startServer(serverOptions{settings: `
		ca_ttl = "12s"
		default_x509_svid_ttl = "4s"
		default_jwt_svid_ttl = "4s"
		agent_ttl = "4s"
	`})
	node := w.id("/node")
	token := func() string {
		resp, err := s.agents().CreateJoinToken(bounded(t), &agentv1.CreateJoinTokenRequest{Ttl: 600, AgentId: apiID(node)})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetValue()
	}
	a := w.newAgent(s, "a", agentOptions{settings: "persist_svids = true"})
	a.token = token()
	a.attest()
	s.create(w.entry("/web", node, self()))
	before := sees(t, a, w.id("/web")).find(w.id("/web"))
	last := lastNotAfter(t, s)
	if n := strings.Count(s.proc.log.String(), "server has a new X509-SVID"); n > 30 {
		t.Errorf("the server has renewed its own SVID %d times in a few seconds", n)
	}
	a.stop()
	s.stop()

	sleepUntil(t, last.Add(time.Second))
	serverFiles, agentFiles := content(t, s.dataDir()), content(t, a.dataDir())
	s.start()
	if !lastNotAfter(t, s).After(time.Now()) {
		t.Error("the bundle has no authority but expired ones")
	}
	writeFile(t, a.bundlePath(), s.bundlePEM())
	a.token = token()
	a.attest()
	after := sees(t, a, w.id("/web")).find(w.id("/web"))
	after.verify(t)
	if after.leaf.Equal(before.leaf) {
		t.Error("the workload has its expired SVID still")
	}
	t.Logf("server and agent came back over %v and %v", sizes(serverFiles), sizes(agentFiles))
}

// lastNotAfter is when the last authority of the bundle ends.
func lastNotAfter(t *testing.T, s *server) time.Time {
	t.Helper()
	var last time.Time
	for _, a := range s.bundle().GetX509Authorities() {
		cert, err := x509.ParseCertificate(a.GetAsn1())
		if err != nil {
			t.Fatal(err)
		}
		if cert.NotAfter.After(last) {
			last = cert.NotAfter
		}
	}
	return last
}
