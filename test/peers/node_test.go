package peers

import (
	"encoding/pem"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
)

// node is an agent, ours or SPIRE's, of the server of its side, ours or SPIRE's.
// One configuration serves both.
type node struct {
	*side
	agent programs
	dir   string
	id    string // path of its SPIFFE ID
	proc  *process
	conn  *grpc.ClientConn // to the Workload API's socket
}

// startNode lets an agent in with a join token and waits until it is healthy.
// The settings are lines of the section agent.
func (s *side) startNode(bin programs, settings ...string) *node {
	s.t.Helper()
	token, err := agentv1.NewAgentClient(s.local).CreateJoinToken(bounded(s.t), &agentv1.CreateJoinTokenRequest{Ttl: 600})
	if err != nil {
		s.t.Fatal(err)
	}
	name := fmt.Sprintf("agent-%.4s", token.GetValue())
	n := &node{side: s, agent: bin, dir: s.path(name), id: "/spire/agent/join_token/" + token.GetValue()}
	n.conn = dialSocket(s.t, n.socket())
	n.write(name+".pem", s.bundlePEM())
	text := fmt.Sprintf(`
agent {
	trust_domain = %q
	data_dir = %q
	server_address = "127.0.0.1"
	server_port = %d
	socket_path = %q
	admin_socket_path = %q
	trust_bundle_path = %q
	log_level = "DEBUG"
	%s
}
plugins {
	KeyManager "disk" { plugin_data { directory = %q } }
	NodeAttestor "join_token" { plugin_data {} }
	WorkloadAttestor "unix" { plugin_data {} }
}
`, testTD.Name(), n.dir+"/data", s.port, n.socket(), n.adminSocket(), s.path(name+".pem"), strings.Join(settings, "\n\t"), n.dir+"/data")
	n.write(name+".conf", text)
	n.write(name+".fresh.conf", strings.ReplaceAll(text, n.dir+"/data", n.dir+"/fresh"))
	n.run(name, "-joinToken", token.GetValue())
	healthy(s.t, n.proc, n.conn)
	return n
}

func (n *node) run(name string, args ...string) {
	n.t.Helper()
	args = append([]string{"run", "-config", n.path(name + ".conf")}, args...)
	n.proc = launch(n.t, n.agent.name+" agent", exec.Command(n.agent.agent(), args...))
}

func (n *node) socket() string      { return n.dir + "/public/api.sock" }
func (n *node) adminSocket() string { return n.dir + "/private/admin.sock" }

// bundlePEM is the server's X.509 authorities, as an operator carries them to a
// node.
func (s *side) bundlePEM() string {
	s.t.Helper()
	b, err := bundlev1.NewBundleClient(s.local).GetBundle(bounded(s.t), &bundlev1.GetBundleRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	var out strings.Builder
	for _, a := range b.GetX509Authorities() {
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: a.GetAsn1()}); err != nil {
			s.t.Fatal(err)
		}
	}
	return out.String()
}

// create registers an entry and returns it as the server has it.
func (s *side) create(t *testing.T, e *types.Entry) *types.Entry {
	t.Helper()
	resp, err := entryv1.NewEntryClient(s.local).BatchCreateEntry(bounded(t), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
	if err != nil {
		t.Fatal(err)
	}
	if st := resp.GetResults()[0].GetStatus(); st.GetCode() != 0 {
		t.Fatalf("creating an entry for %s: %v", e.GetSpiffeId().GetPath(), st)
	}
	return resp.GetResults()[0].GetEntry()
}

// mine is an entry of this node for processes of the user who runs the tests.
func (n *node) mine(path string) *types.Entry {
	return &types.Entry{SpiffeId: apiID(path), ParentId: apiID(n.id), Selectors: []*types.Selector{{Type: "unix", Value: fmt.Sprintf("uid:%d", uid)}}}
}
