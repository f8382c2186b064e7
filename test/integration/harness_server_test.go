package integration

import (
	"cmp"
	"encoding/pem"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// serverOptions are what a story says about its server; the zero value is a
// server as users have it.
type serverOptions struct {
	// name tells the servers of a world apart (default "s").
	name string
	// settings are lines of the section server, beside those every server has.
	settings string
	// more is sections beside server and plugins.
	more string
	// plugins are lines of the section plugins, beside the key manager.
	plugins string
	// memoryKeys forgets the keys when the server ends.
	memoryKeys bool
}

// server is a credence-server: one data_dir, started any number of times.
type server struct {
	*world
	dir  string
	port int
	proc *process
	conn *grpc.ClientConn
}

// newServer writes a configuration and starts nothing.
func (w *world) newServer(o serverOptions) *server {
	w.t.Helper()
	s := &server{world: w, dir: w.path(cmp.Or(o.name, "s")), port: freePort(w.t)}
	s.conn = dialSocket(w.t, s.socket())
	writeFile(w.t, s.config(), s.text(o))
	return s
}

func (s *server) text(o serverOptions) string {
	keys := "disk"
	if o.memoryKeys {
		keys = "memory"
	}
	return fmt.Sprintf(`
server {
	trust_domain = %q
	data_dir = %q
	bind_address = "127.0.0.1"
	bind_port = %d
	socket_path = %q
	log_level = "DEBUG"
	audit_log_enabled = true
	ratelimit { attestation = false } // All agents come from one address.
%s
}
plugins {
	KeyManager %q { plugin_data {} }
%s
}
%s
`, s.td.Name(), s.dataDir(), s.port, s.socket(), o.settings, keys, o.plugins, o.more)
}

func (s *server) config() string  { return s.dir + "/server.conf" }
func (s *server) dataDir() string { return s.dir + "/data" }
func (s *server) socket() string  { return s.dir + "/private/api.sock" }

// called is the server's name in what a failed test shows.
func (s *server) called() string {
	if name := filepath.Base(s.dir); name != "s" {
		return "server " + name
	}
	return "server"
}

// run launches the server without waiting for it.
func (s *server) run() *process {
	s.t.Helper()
	s.proc = s.launch(s.called(), exec.Command(s.bin.server, "run", "-config", s.config()))
	return s.proc
}

// start runs the server and waits until it is healthy.
func (s *server) start() {
	s.t.Helper()
	healthy(s.t, s.run(), s.conn)
}

// startServer makes and starts a server.
func (w *world) startServer(o serverOptions) *server {
	w.t.Helper()
	s := w.newServer(o)
	s.start()
	return s
}

func (s *server) stop() { s.t.Helper(); s.proc.stop(s.t) }
func (s *server) kill() { s.t.Helper(); s.proc.kill(s.t) }

func (s *server) entries() entryv1.EntryClient   { return entryv1.NewEntryClient(s.conn) }
func (s *server) agents() agentv1.AgentClient    { return agentv1.NewAgentClient(s.conn) }
func (s *server) bundles() bundlev1.BundleClient { return bundlev1.NewBundleClient(s.conn) }

// cli runs a verb of credence-server against this server.
func (s *server) cli(args ...string) output {
	s.t.Helper()
	return s.runCommand(s.command(s.bin.server, append(args, "-socketPath", s.socket())...))
}

// token makes a join token.
func (s *server) token() string {
	s.t.Helper()
	resp, err := s.agents().CreateJoinToken(bounded(s.t), &agentv1.CreateJoinTokenRequest{Ttl: 600})
	if err != nil {
		s.t.Fatalf("making a join token: %v", err)
	}
	return resp.GetValue()
}

// bundle is the trust domain's bundle.
func (s *server) bundle() *types.Bundle {
	s.t.Helper()
	b, err := s.bundles().GetBundle(bounded(s.t), &bundlev1.GetBundleRequest{})
	if err != nil {
		s.t.Fatalf("getting the bundle: %v", err)
	}
	return b
}

// bundlePEM is the bundle as an operator carries it to a node.
func (s *server) bundlePEM() string {
	s.t.Helper()
	var out strings.Builder
	for _, a := range s.bundle().GetX509Authorities() {
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: a.GetAsn1()}); err != nil {
			s.t.Fatal(err)
		}
	}
	return out.String()
}

// id is a SPIFFE ID of the world's trust domain.
func (w *world) id(path string) spiffeid.ID {
	return spiffeid.RequireFromPath(w.td, path)
}

func apiID(id spiffeid.ID) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}

// entry is an entry for processes with the selectors, which are type:value.
func (w *world) entry(path string, parent spiffeid.ID, selectors ...string) *types.Entry {
	e := &types.Entry{SpiffeId: apiID(w.id(path)), ParentId: apiID(parent)}
	for _, s := range selectors {
		kind, value, ok := strings.Cut(s, ":")
		if !ok {
			w.t.Fatalf("%q is not a selector", s)
		}
		e.Selectors = append(e.Selectors, &types.Selector{Type: kind, Value: value})
	}
	return e
}

// create creates an entry and returns it as the server has it.
func (s *server) create(e *types.Entry) *types.Entry {
	s.t.Helper()
	created, err := createEntry(s.t, s.entries(), e)
	if err != nil {
		s.t.Fatalf("creating an entry for %s: %v", e.GetSpiffeId().GetPath(), err)
	}
	return created
}

// errItem is a status other than OK of an item of a batch.
var errItem = errors.New("item refused")

func createEntry(t *testing.T, client entryv1.EntryClient, e *types.Entry) (*types.Entry, error) {
	resp, err := client.BatchCreateEntry(bounded(t), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
	if err != nil {
		return nil, err
	}
	r := resp.GetResults()[0]
	if c := codes.Code(r.GetStatus().GetCode()); c != codes.OK {
		return r.GetEntry(), fmt.Errorf("%w: %v: %s", errItem, c, r.GetStatus().GetMessage())
	}
	return r.GetEntry(), nil
}

// change replaces an entry.
func (s *server) change(e *types.Entry) *types.Entry {
	s.t.Helper()
	resp, err := s.entries().BatchUpdateEntry(bounded(s.t), &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{e}})
	if err != nil {
		s.t.Fatalf("updating the entry: %v", err)
	}
	if st := resp.GetResults()[0].GetStatus(); st.GetCode() != 0 {
		s.t.Fatalf("updating the entry: %v", st)
	}
	return resp.GetResults()[0].GetEntry()
}

// remove deletes an entry.
func (s *server) remove(id string) {
	s.t.Helper()
	resp, err := s.entries().BatchDeleteEntry(bounded(s.t), &entryv1.BatchDeleteEntryRequest{Ids: []string{id}})
	if err != nil {
		s.t.Fatalf("deleting the entry: %v", err)
	}
	if st := resp.GetResults()[0].GetStatus(); st.GetCode() != 0 {
		s.t.Fatalf("deleting the entry: %v", st)
	}
}

// allEntries lists every entry, by ID.
func (s *server) allEntries() map[string]*types.Entry {
	s.t.Helper()
	out := make(map[string]*types.Entry)
	for token := ""; ; {
		page, err := s.entries().ListEntries(bounded(s.t), &entryv1.ListEntriesRequest{PageSize: 300, PageToken: token})
		if err != nil {
			s.t.Fatalf("listing entries: %v", err)
		}
		for _, e := range page.GetEntries() {
			out[e.GetId()] = e
		}
		if token = page.GetNextPageToken(); token == "" {
			return out
		}
	}
}

// ban bans an agent.
func (s *server) ban(id spiffeid.ID) {
	s.t.Helper()
	if _, err := s.agents().BanAgent(bounded(s.t), &agentv1.BanAgentRequest{Id: apiID(id)}); err != nil {
		s.t.Fatalf("banning %s: %v", id, err)
	}
}

// evict deletes an agent.
func (s *server) evict(id spiffeid.ID) {
	s.t.Helper()
	if _, err := s.agents().DeleteAgent(bounded(s.t), &agentv1.DeleteAgentRequest{Id: apiID(id)}); err != nil {
		s.t.Fatalf("evicting %s: %v", id, err)
	}
}
