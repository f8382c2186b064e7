package peers

import (
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
)

// handshakesPerStep is how many handshakes must succeed between two steps of the
// move, at least.
const handshakesPerStep = 100

// TestMoveWithoutAFailedHandshake plays docs/migrating-from-spire.md: a SPIRE
// server with two agents, on each a workload, which talk mutual TLS all the
// time, one handshake after the other; our server beside it; the import; one
// agent moved, moved back and moved again, then the other; both CAs rotated on
// the way; SPIRE switched off, and its authorities taken out of the bundle. Not
// one handshake fails, on either end; nor is a JWT-SVID refused that one workload
// sends the other at each step.
func TestMoveWithoutAFailedHandshake(t *testing.T) {
	t.Parallel()
	theirs, mine := spire(t), ours(t)
	m := newMove(t, theirs)
	m.step("SPIRE alone")

	// 1. Ours beside it, and the import, repeated from now on.
	m.mine = m.server(mine)
	m.learn()
	m.step("our server beside it")
	out := runCommand(t, m.mine.bin.server(), "import", "-from", m.theirs.socket(), "-socketPath", m.mine.socket())
	if out.code != 0 || !strings.Contains(out.stdout, "Verified: both servers are alike.") {
		t.Fatalf("the import ended with %d:\n%s%s", out.code, out.stdout, out.stderr)
	}
	t.Logf("the first import:\n%s", out.stdout)
	again := launch(t, "import -every", exec.Command(m.mine.bin.server(), "import", "-every", "1s", "-from", m.theirs.socket(), "-socketPath", m.mine.socket()))
	m.everyoneTrusts(2)
	m.step("the import")

	// 2. One agent over, back, and over again.
	client, server := m.nodes[0], m.nodes[1]
	m.move(client, m.mine)
	m.step("the client's agent moved")
	m.move(client, m.theirs)
	m.step("the client's agent moved back")
	m.move(client, m.mine)
	m.step("the client's agent moved again")

	// 3. Both CAs rotate while agents are here and there.
	for _, s := range []*side{m.theirs, m.mine} {
		m.rotate(s)
		m.step("the CA of " + s.bin.name + " rotated")
	}

	// 4. The other agent, and the end of SPIRE.
	m.move(server, m.mine)
	m.step("the server's agent moved")
	m.move(client, m.theirs)
	m.step("the client's agent moved back")
	m.move(client, m.mine)
	m.step("the client's agent moved")
	if !again.end(syscall.SIGINT) || again.cmd.ProcessState.ExitCode() != 0 {
		t.Errorf("import -every ended with %v:\n%s", again.cmd.ProcessState, again.log.String())
	}
	entries := m.theirs.entryIDs()
	if !m.theirs.proc.end(syscall.SIGTERM) {
		t.Fatal("SPIRE's server did not end")
	}
	m.step("SPIRE switched off")
	m.forget()
	m.step("SPIRE's authorities removed")

	m.talk.stop()
	t.Logf("%s", m.talk.report(m.house))
	if failures := m.talk.failures(); len(failures) > 0 {
		t.Errorf("%d handshakes failed:\n%s", len(failures), strings.Join(failures[:min(10, len(failures))], "\n"))
	}
	// SPIRE's data is as it was: it can be started again.
	m.theirs.start()
	if got := m.theirs.entryIDs(); !slices.Equal(got, entries) {
		t.Errorf("started again, SPIRE has the entries %v, before %v", got, entries)
	}
}

// move is the story's stage.
type move struct {
	t            *testing.T
	theirs, mine *side
	nodes        []*moving
	talk         *talk
	authorities  map[string]string // authority ID to house
}

// moving is a node whose agent changes.
type moving struct {
	*side  // a folder; no server
	pki    machinePKI
	proc   *process
	source *workloadapi.X509Source
}

// newMove starts a SPIRE server with two agents and lets their workloads talk.
func newMove(t *testing.T, theirs programs) *move {
	t.Helper()
	m := &move{t: t, authorities: map[string]string{}}
	for range 2 {
		n := &moving{side: newSide(t, theirs), pki: newMachinePKI(t, newKey(t))}
		n.keyFile("key.pem", n.pki.key)
		n.pemFile("cert.pem", "CERTIFICATE", n.pki.leaf.Raw)
		n.pemFile("inter.pem", "CERTIFICATE", n.pki.inter.Raw)
		m.nodes = append(m.nodes, n)
	}
	m.theirs = m.server(theirs)
	m.learn()
	for i, path := range []string{"/client", "/server"} {
		parent := "/spire/agent/x509pop/" + fingerprint(m.nodes[i].pki.leaf)
		if i == 1 { // By an alias, as fleets have it.
			parent = "/fleet"
			m.theirs.entry(&types.Entry{SpiffeId: apiID(parent), ParentId: apiID("/spire/server"), Selectors: []*types.Selector{
				{Type: "x509pop", Value: "ca:fingerprint:" + fingerprint(m.nodes[i].pki.root)},
			}})
		}
		m.theirs.entry(&types.Entry{SpiffeId: apiID(path), ParentId: apiID(parent), X509SvidTtl: 60, Hint: path[1:],
			Selectors: []*types.Selector{{Type: "unix", Value: fmt.Sprintf("uid:%d", os.Getuid())}}})
	}
	for i, n := range m.nodes {
		m.run(n, m.theirs)
		n.serves([]string{"/client", "/server"}[i])
		var err error
		if n.source, err = workloadapi.NewX509Source(bounded(t), workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+n.agentSocket()))); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.source.Close() })
	}
	m.talk = startTalk(t, m.nodes[0].source, m.nodes[1].source)
	return m
}

// server starts a server that knows both machines.
func (m *move) server(bin programs) *side {
	m.t.Helper()
	return startX509POPSide(m.t, bin, func(s *side) string {
		return fmt.Sprintf("ca_bundle_path = %q", s.pemFile("ca.pem", "CERTIFICATE", m.nodes[0].pki.root.Raw, m.nodes[1].pki.root.Raw))
	})
}

// run starts the agent of a server's house on a node: same socket, same
// machine certificate, a data_dir of its own.
func (m *move) run(n *moving, s *side) {
	m.t.Helper()
	bundle, err := bundlev1.NewBundleClient(s.local).GetBundle(bounded(m.t), &bundlev1.GetBundleRequest{})
	if err != nil {
		m.t.Fatal(err)
	}
	var roots [][]byte
	for _, a := range bundle.GetX509Authorities() {
		roots = append(roots, a.GetAsn1())
	}
	name, data := s.bin.name+".conf", n.path("agent-"+s.bin.name)
	n.write(name, fmt.Sprintf(`
agent {
	trust_domain = %q
	data_dir = %q
	server_address = "127.0.0.1"
	server_port = %d
	socket_path = %q
	trust_bundle_path = %q
	log_level = "DEBUG"
}
plugins {
	KeyManager "disk" { plugin_data { directory = %q } }
	NodeAttestor "x509pop" { plugin_data { private_key_path = %q certificate_path = %q intermediates_path = %q } }
	WorkloadAttestor "unix" { plugin_data {} }
}
`, testTD.Name(), data, s.port, n.agentSocket(), n.pemFile(s.bin.name+".pem", "CERTIFICATE", roots...), data,
		n.path("key.pem"), n.path("cert.pem"), n.path("inter.pem")))
	n.proc = launch(m.t, s.bin.name+" agent", exec.Command(s.bin.agent(), "run", "-config", n.path(name)))
}

// move swaps a node's agent, and waits until its workload has an SVID of the
// other house.
func (m *move) move(n *moving, to *side) {
	m.t.Helper()
	if !n.proc.end(syscall.SIGTERM) {
		m.t.Fatal("the agent did not end")
	}
	m.run(n, to)
	eventually(m.t, "the workload has an SVID of "+to.bin.name, func() error {
		if !n.proc.running() {
			m.t.Fatalf("the agent ended:\n%s", n.proc.log.String())
		}
		svid, err := n.source.GetX509SVID()
		if err != nil {
			return err
		}
		if got := m.house(hex.EncodeToString(svid.Certificates[0].AuthorityKeyId)); got != to.bin.name {
			return fmt.Errorf("it is of %q", got)
		}
		return nil
	})
}

// learn notes which authorities are whose.
func (m *move) learn() {
	m.t.Helper()
	for _, s := range []*side{m.theirs, m.mine} {
		if s == nil {
			continue
		}
		state := m.state(s)
		for _, a := range []*localauthorityv1.AuthorityState{state.GetActive(), state.GetPrepared(), state.GetOld()} {
			if a != nil {
				m.authorities[a.GetAuthorityId()] = s.bin.name
			}
		}
	}
}

func (m *move) house(authority string) string { return m.authorities[authority] }

func (m *move) state(s *side) *localauthorityv1.GetX509AuthorityStateResponse {
	m.t.Helper()
	state, err := localauthorityv1.NewLocalAuthorityClient(s.local).GetX509AuthorityState(bounded(m.t), &localauthorityv1.GetX509AuthorityStateRequest{})
	if err != nil {
		m.t.Fatal(err)
	}
	return state
}

// rotate makes a server prepare its next CA and, once everyone has it, use it.
func (m *move) rotate(s *side) {
	m.t.Helper()
	client := localauthorityv1.NewLocalAuthorityClient(s.local)
	next, err := client.PrepareX509Authority(bounded(m.t), &localauthorityv1.PrepareX509AuthorityRequest{})
	if err != nil {
		m.t.Fatal(err)
	}
	m.learn()
	m.everyoneTrusts(len(m.authorities))
	if _, err := client.ActivateX509Authority(bounded(m.t), &localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: next.GetPreparedAuthority().GetAuthorityId()}); err != nil {
		m.t.Fatal(err)
	}
}

// everyoneTrusts waits until both workloads have a bundle of n authorities.
func (m *move) everyoneTrusts(n int) {
	m.t.Helper()
	eventually(m.t, fmt.Sprintf("every workload has %d authorities", n), func() error {
		for _, node := range m.nodes {
			b, err := node.source.GetX509BundleForTrustDomain(testTD)
			if err != nil {
				return err
			}
			if got := len(b.X509Authorities()); got != n {
				return fmt.Errorf("a workload has %d", got)
			}
		}
		return nil
	})
}

// forget takes SPIRE's authorities out of our bundle.
func (m *move) forget() {
	m.t.Helper()
	kept := 0
	for id, house := range m.authorities {
		if house == m.mine.bin.name {
			kept++
			continue
		}
		for _, verb := range []string{"taint", "revoke"} {
			if out := runCommand(m.t, m.mine.bin.server(), "upstreamauthority", verb, "-subjectKeyID", id, "-socketPath", m.mine.socket()); out.code != 0 {
				m.t.Fatalf("%s %s: %s%s", verb, id, out.stdout, out.stderr)
			}
		}
	}
	m.everyoneTrusts(kept)
}

// step waits for handshakes enough and says how it went so far.
func (m *move) step(what string) {
	m.t.Helper()
	done := m.talk.count()
	eventually(m.t, "handshakes after: "+what, func() error {
		if now := m.talk.count(); now < done+handshakesPerStep {
			return fmt.Errorf("%d handshakes", now-done)
		}
		return nil
	})
	m.tokens(what)
	m.t.Logf("%-32s %6d handshakes, %d failed, after %v", what, m.talk.count(), len(m.talk.failures()), time.Since(m.talk.began).Round(time.Second))
}

// tokens has each workload send the other a JWT-SVID, which its agent validates.
func (m *move) tokens(what string) {
	m.t.Helper()
	for i, n := range m.nodes {
		peer := m.nodes[1-i]
		svid, err := workloadapi.FetchJWTSVID(bounded(m.t), jwtsvid.Params{Audience: what}, workloadapi.WithAddr("unix://"+n.agentSocket()))
		if err != nil {
			m.t.Errorf("%s: fetching a JWT-SVID: %v", what, err)
			continue
		}
		if _, err := workloadapi.ValidateJWTSVID(bounded(m.t), svid.Marshal(), what, workloadapi.WithAddr("unix://"+peer.agentSocket())); err != nil {
			m.t.Errorf("%s: a JWT-SVID of %s is refused: %v", what, svid.ID, err)
		}
	}
}

func (s *side) entry(e *types.Entry) {
	s.t.Helper()
	resp, err := entryv1.NewEntryClient(s.local).BatchCreateEntry(bounded(s.t), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
	if err != nil || codes.Code(resp.GetResults()[0].GetStatus().GetCode()) != codes.OK {
		s.t.Fatalf("creating an entry: %v, %v", resp, err)
	}
}

func (s *side) entryIDs() []string {
	s.t.Helper()
	resp, err := entryv1.NewEntryClient(s.local).ListEntries(bounded(s.t), &entryv1.ListEntriesRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	var ids []string
	for _, e := range resp.GetEntries() {
		ids = append(ids, e.GetId())
	}
	slices.Sort(ids)
	return ids
}
