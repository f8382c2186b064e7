package integration

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// A server that cannot start says why in one line (what, where, what to do),
// ends with exit code 1, and leaves data_dir as it was.
func TestAServerThatCannotStartSaysWhyAndLeavesNothing(t *testing.T) {
	t.Parallel()
	file := func(t *testing.T, w *world) string {
		path := w.path("file")
		writeFile(t, path, "")
		return path
	}
	for _, test := range []struct {
		name   string
		edit   func(t *testing.T, s *server, text string) string // the configuration
		args   []string
		asUser bool // of root's files
		words  []string
	}{
		{"unknown key", replace("trust_domain =", "trust_domian ="), nil, false, []string{"server.conf:3", "trust_domian", `did you mean "trust_domain"`}},
		{"unknown section", replace("plugins {", "plugin {"), nil, false, []string{"server.conf:", `did you mean "plugins"`}},
		{"unknown plugin", replace(`KeyManager "disk"`, `KeyManager "dsik"`), nil, false, []string{"server.conf:", "dsik", "disk"}},
		{"broken file", replace("plugins {", "plugins {{"), nil, false, []string{"server.conf:"}},
		{"no such file", nil, []string{"-config", "/nowhere/server.conf"}, false, []string{"/nowhere/server.conf", "could not find config file"}},
		{"trust domain", replace(`"refusal.test"`, `"Refusal Test"`), nil, false, []string{"server.trust_domain", "Refusal Test"}},
		{"admin ID", replace("log_level", `admin_ids = ["spiffe://refusal.test/a//b"]
	log_level`), nil, false, []string{"server.admin_ids", "spiffe://refusal.test/a//b", "empty segments"}},
		{"log level", replace(`"DEBUG"`, `"LOUD"`), nil, false, []string{"server.log_level", "LOUD", "DEBUG, INFO, WARN or ERROR"}},
		{"lifetime", replace("log_level", `ca_ttl = "1ms"
	log_level`), nil, false, []string{"server.ca_ttl", "1ms is shorter than"}},
		{"no key manager", replace(`KeyManager "disk" { plugin_data {} }`, ""), nil, false, []string{"plugins.KeyManager", `"disk"`, `"memory"`}},
		{"busy port", func(t *testing.T, s *server, text string) string {
			lis, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", s.port))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = lis.Close() })
			return text
		}, nil, false, []string{"server.bind_port", "in use", "choose another port"}},
		{"foreign address", replace(`"127.0.0.1"`, `"192.0.2.1"`), nil, false, []string{"server.bind_address", "192.0.2.1", "not an address of this machine"}},
		{"long socket path", nil, []string{"-socketPath", "/tmp/" + strings.Repeat("x", 120)}, false, []string{"server.socket_path", "107"}},
		{"data_dir below a file", func(t *testing.T, s *server, text string) string {
			return strings.Replace(text, s.dataDir(), filepath.Join(file(t, s.world), "data"), 1)
		}, nil, false, []string{"server.data_dir", "not a directory"}},
		{"unwritable data_dir", func(t *testing.T, s *server, text string) string {
			if err := os.Mkdir(s.dataDir(), 0o500); err != nil {
				t.Fatal(err)
			}
			return text
		}, nil, true, []string{"server.data_dir", "permission denied"}},
		{"keys that others can read", func(t *testing.T, s *server, text string) string {
			writeFile(t, s.dataDir()+"/keys.json", `{}`)
			if err := os.Chmod(s.dataDir()+"/keys.json", 0o644); err != nil {
				t.Fatal(err)
			}
			return text
		}, nil, false, []string{"keys.json", "0644", "chmod"}},
		{"a store that is none", func(t *testing.T, s *server, text string) string {
			writeFile(t, s.dataDir()+"/credence.db", strings.Repeat("not a store ", 4096))
			return text
		}, nil, false, []string{"credence.db", "restore a backup"}},
		{"SPIRE's data", func(t *testing.T, s *server, text string) string {
			writeFile(t, s.dataDir()+"/datastore.sqlite3", "SQLite format 3\x00")
			return strings.Replace(text, "plugins {", fmt.Sprintf(`plugins {
	DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = %q } }`, s.dataDir()+"/datastore.sqlite3"), 1)
		}, nil, false, []string{"datastore.sqlite3", "SPIRE", "nothing was changed"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "refusal")
			s := w.newServer(serverOptions{})
			if test.edit != nil {
				before := s.text(serverOptions{})
				text := test.edit(t, s, before)
				writeFile(t, s.config(), text)
			}
			before := listing(t, s.dataDir())
			cmd := exec.Command(w.bin.server, append([]string{"run", "-config", s.config()}, test.args...)...)
			if test.asUser {
				asSomebody(t, s, cmd)
			}
			wantOneLine(t, s.endsAtOnce(w.launch("server", cmd)), test.words...)
			if after := listing(t, s.dataDir()); !slices.Equal(before, after) {
				t.Errorf("data_dir had %q, and has %q", before, after)
			}
			if _, err := os.Lstat(s.socket()); err == nil {
				t.Error("the admin socket was left behind")
			}
		})
	}
}

func replace(old, now string) func(*testing.T, *server, string) string {
	return func(t *testing.T, _ *server, text string) string {
		if !strings.Contains(text, old) {
			t.Fatalf("the configuration has no %q to replace", old)
		}
		return strings.Replace(text, old, now, 1)
	}
}

// asSomebody runs the command as a user who cannot write root's folders, when
// the test is root, for whom no folder is unwritable.
func asSomebody(t *testing.T, s *server, cmd *exec.Cmd) {
	t.Helper()
	if os.Getuid() != 0 {
		return
	}
	private := filepath.Dir(s.socket())
	if err := os.MkdirAll(private, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(private, clientUID, clientUID); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.config(), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: clientUID, Gid: clientUID}}
}

// listing is the names and sizes of the files in a folder, which need not be
// there.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	for name, size := range sizes(content(t, dir)) {
		out = append(out, fmt.Sprintf("%s: %d", name, size))
	}
	slices.Sort(out)
	return out
}

// An agent that cannot start says why in one line, too.
func TestAnAgentThatCannotStartSaysWhy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "refused")
	s := w.startServer(serverOptions{})
	foreign, _ := authority(t, time.Now())
	edit := func(old, now string) func(*testing.T, *agent, string) string {
		return func(t *testing.T, _ *agent, text string) string {
			if !strings.Contains(text, old) {
				t.Fatalf("the configuration has no %q to replace", old)
			}
			return strings.Replace(text, old, now, 1)
		}
	}
	bundle := func(content string) func(*testing.T, *agent, string) string {
		return func(t *testing.T, a *agent, text string) string {
			writeFile(t, a.bundlePath(), content)
			return text
		}
	}
	for _, test := range []struct {
		name  string
		edit  func(t *testing.T, a *agent, text string) string
		token string // instead of a good one
		words []string
	}{
		{"unknown key", edit("server_address", "server_adress"), "", []string{"agent.conf:5", "server_adress", `did you mean "server_address"`}},
		{"no attestor", edit(`WorkloadAttestor "unix" { plugin_data { discover_workload_path = true } }`, ""), "", []string{"plugins.WorkloadAttestor"}},
		{"no bundle", edit("trust_bundle_path", "#"), "", []string{"agent.trust_bundle_path", "bundle show"}},
		{"missing bundle", edit("bundle.pem", "nowhere.pem"), "", []string{"agent.trust_bundle_path", "nowhere.pem", "bundle show"}},
		{"bundle that is no PEM", bundle("hello"), "", []string{"agent.trust_bundle_path", "bundle.pem", "no PEM"}},
		{"bundle with a broken certificate", bundle("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "", []string{"agent.trust_bundle_path", "bundle.pem"}},
		{"bundle that is no SPIFFE document", edit("trust_bundle_path", "trust_bundle_format = \"spiffe\"\n\ttrust_bundle_path"), "", []string{"agent.trust_bundle_path", "SPIFFE bundle"}},
		{"bundle of somebody else", bundle(foreign), "", []string{"the server could not be verified", "is the trust bundle the one of this server"}},
		{"foreign trust domain", edit(`"refused.test"`, `"other.test"`), "", []string{"the server could not be verified", `trust domain: "refused.test"`}},
		{"unknown token", nil, "11111111-2222-3333-4444-canary555555", []string{"the server refuses", "join token does not exist or has already been used"}},
		{"malformed token", nil, "canary/../spire/server", []string{"the server refuses", "malformed"}},
		{"data_dir below a file", func(t *testing.T, a *agent, text string) string {
			return strings.Replace(text, a.dataDir(), filepath.Join(a.bundlePath(), "data"), 1)
		}, "", []string{"agent.data_dir", "not a directory"}},
		{"state that others can read", func(t *testing.T, a *agent, text string) string {
			writeFile(t, a.dataDir()+"/agent-state.pb", "")
			if err := os.Chmod(a.dataDir()+"/agent-state.pb", 0o644); err != nil {
				t.Fatal(err)
			}
			return text
		}, "", []string{"agent-state.pb", "644", "chmod"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := w.newAgent(s, strings.ReplaceAll(test.name, " ", "-"), agentOptions{})
			if test.edit != nil {
				writeFile(t, a.config(), test.edit(t, a, a.text(agentOptions{})))
			}
			token := a.token
			if test.token != "" {
				token = s.secret(test.token)
			}
			wantOneLine(t, w.endsAtOnce(a.run("-joinToken", token)), test.words...)
			if _, err := os.Lstat(a.socket()); err == nil {
				t.Error("the socket was left behind")
			}
			for _, f := range filesOf(t, a.dataDir()) {
				if f == "agent-svid.json" {
					t.Error("an agent that was not let in has an SVID")
				}
			}
		})
	}
	if agents := s.cli("agent", "count"); agents.stdout != "0 attested agents\n" {
		t.Errorf("agent count: %q, want none", agents.stdout)
	}
}

// An agent whose clock is far off cannot verify its server, and says that this
// may be why. There is no way to set a clock for one process here, so the clock
// that is off is the server's: its authority and its certificate begin in an
// hour, or ended an hour ago. To the agent that is the same.
func TestAnAgentWithAClockFarOffSaysSo(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]time.Time{
		"behind": time.Now().Add(time.Hour),
		"ahead":  time.Now().Add(-3 * time.Hour),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "clock")
			bundle, cert := authority(t, begin)
			lis, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13})
			if err != nil {
				t.Fatal(err)
			}
			serving := make(chan struct{})
			go func() {
				defer close(serving)
				for {
					conn, err := lis.Accept()
					if err != nil {
						return
					}
					_ = conn.(*tls.Conn).Handshake()
					_ = conn.Close()
				}
			}()
			t.Cleanup(func() { _ = lis.Close(); <-serving })
			s := &server{world: w, port: lis.Addr().(*net.TCPAddr).Port}
			a := &agent{world: w, server: s, name: "a", dir: w.path("a"), metrics: freePort(t)}
			writeFile(t, a.bundlePath(), bundle)
			writeFile(t, a.config(), a.text(agentOptions{}))
			wantOneLine(t, w.endsAtOnce(a.run("-joinToken", "x")), "the server could not be verified",
				"certificate has expired or is not yet valid", "is this machine's clock right")
		})
	}
}

// authority is a trust domain's root, PEM, and a server's certificate by it,
// both good for two hours from the time given.
func authority(t *testing.T, from time.Time) (string, tls.Certificate) {
	t.Helper()
	make1 := func(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) ([]byte, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if signer == nil {
			signer = key
		}
		template.NotBefore, template.NotAfter = from, from.Add(2*time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		return der, key
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: "clock.test"}},
	}
	rootDER, rootKey := make1(root, root, nil)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), KeyUsage: x509.KeyUsageDigitalSignature,
		URIs: []*url.URL{{Scheme: "spiffe", Host: "clock.test", Path: "/spire/server"}},
	}
	leafDER, leafKey := make1(leaf, root, rootKey)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER})),
		tls.Certificate{Certificate: [][]byte{leafDER}, PrivateKey: leafKey}
}

// Entries that break a rule are refused with the rule, and nothing of them is
// kept; a request that is too large is refused whole; and the server goes on.
func TestBadRequestsAreRefusedWithTheirRule(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "request")
	s := w.startServer(serverOptions{})
	a := w.startAgent(s, "a", agentOptions{})

	t.Run("command line", func(t *testing.T) {
		id, parent := w.id("/x").String(), a.id().String()
		for _, test := range []struct {
			name                 string
			id, parent, selector string
			words                []string
		}{
			{"SPIFFE ID", "spiffe://request.test/a//b", parent, self(), []string{"-spiffeID", "a//b", "empty segments"}},
			{"SPIFFE ID with dots", "spiffe://request.test/a/../b", parent, self(), []string{"-spiffeID", "dot segments"}},
			{"not an ID", "https://request.test/a", parent, self(), []string{"-spiffeID", "https", "spiffe://example.org/path"}},
			{"parent", id, "request.test/a", self(), []string{"-parentID", "request.test/a"}},
			{"selector", id, parent, "unix", []string{"selector", "unix"}},
			{"empty selector value", id, parent, "unix:", []string{"selector"}},
			{"foreign trust domain", "spiffe://elsewhere.test/x", parent, self(), []string{"elsewhere.test"}},
			{"foreign parent", id, "spiffe://elsewhere.test/x", self(), []string{"elsewhere.test"}},
			{"reserved ID", "spiffe://request.test/spire/server", parent, self(), []string{"/spire/server"}},
		} {
			out := s.cli("entry", "create", "-spiffeID", test.id, "-parentID", test.parent, "-selector", test.selector)
			if out.code != 1 || out.stdout != "" {
				t.Errorf("%s: exit code %d, said %q", test.name, out.code, out.stdout)
			}
			for _, word := range test.words {
				if !strings.Contains(out.stderr, word) {
					t.Errorf("%s: said %q, want %q in it", test.name, out.stderr, word)
				}
			}
		}
	})
	t.Run("too large", func(t *testing.T) {
		big := &entryv1.BatchCreateEntryRequest{}
		for i := range 30_000 {
			big.Entries = append(big.Entries, w.entry(fmt.Sprintf("/big/%d", i), a.id(), fmt.Sprintf("unix:path:/%0100d", i)))
		}
		_, err := s.entries().BatchCreateEntry(bounded(t), big)
		if status.Code(err) != codes.ResourceExhausted {
			t.Errorf("a request of 5 MB on the admin socket: %v, want ResourceExhausted", err)
		}
		over, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", s.port),
			grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})))
		if err != nil {
			t.Fatal(err)
		}
		defer over.Close()
		_, err = entryv1.NewEntryClient(over).BatchCreateEntry(bounded(t), big)
		if c := status.Code(err); c != codes.ResourceExhausted && c != codes.PermissionDenied && c != codes.Unauthenticated {
			t.Errorf("a request of 5 MB over TLS: %v, want a refusal", err)
		}
		_, err = workload.NewSpiffeWorkloadAPIClient(a.conn).FetchJWTSVID(workloadContext(bounded(t)),
			&workload.JWTSVIDRequest{Audience: []string{strings.Repeat("x", 1<<20)}})
		if status.Code(err) != codes.ResourceExhausted {
			t.Errorf("a request of 1 MiB to the Workload API: %v, want ResourceExhausted", err)
		}
	})
	t.Run("some of a batch", func(t *testing.T) {
		good := w.entry("/good", a.id(), self())
		bad := []*types.Entry{
			{SpiffeId: &types.SPIFFEID{TrustDomain: "request.test", Path: "no-slash"}, ParentId: good.GetParentId(), Selectors: good.GetSelectors()},
			{SpiffeId: &types.SPIFFEID{TrustDomain: "elsewhere.test", Path: "/x"}, ParentId: good.GetParentId(), Selectors: good.GetSelectors()},
			{SpiffeId: good.GetSpiffeId(), ParentId: good.GetParentId()},
			{SpiffeId: good.GetSpiffeId(), ParentId: good.GetParentId(), Selectors: []*types.Selector{{Type: "unix"}}},
			{SpiffeId: good.GetSpiffeId(), ParentId: good.GetParentId(), Selectors: good.GetSelectors(), X509SvidTtl: -1},
			{SpiffeId: good.GetSpiffeId(), ParentId: good.GetParentId(), Selectors: good.GetSelectors(), DnsNames: []string{"a b"}},
			nil,
		}
		resp, err := s.entries().BatchCreateEntry(bounded(t), &entryv1.BatchCreateEntryRequest{Entries: append(bad, good)})
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range resp.GetResults() {
			want := codes.InvalidArgument
			if i == len(bad) {
				want = codes.OK
			}
			if c := codes.Code(r.GetStatus().GetCode()); c != want {
				t.Errorf("item %d: %v %q, want %v", i, c, r.GetStatus().GetMessage(), want)
			}
		}
	})
	t.Run("to the Workload API", func(t *testing.T) {
		api := workload.NewSpiffeWorkloadAPIClient(a.conn)
		ask := func(ctx context.Context) error {
			stream, err := api.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}
		if s := status.Convert(ask(bounded(t))); s.Code() != codes.InvalidArgument || s.Message() != "security header missing from request" {
			t.Errorf("without the header: %v", s)
		}
		ctx := workloadContext(bounded(t))
		if _, err := api.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("no audience: %v, want InvalidArgument", err)
		}
		if _, err := api.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"x"}, SpiffeId: "nonsense"}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("a SPIFFE ID that is none: %v, want InvalidArgument", err)
		}
		for _, token := range []string{"canary", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJjYW5hcnkifQ.", "a.b.c"} {
			_, err := api.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "x", Svid: w.secret(token)})
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("a token that is none: %v, want InvalidArgument", err)
			}
		}
	})
	if have := s.allEntries(); len(have) != 1 {
		t.Errorf("%d entries are there, want the good one alone", len(have))
	}
	sees(t, a, w.id("/good"))
}
