package integration

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
)

// twoServers are two servers of one trust domain that know nothing of each
// other: from, to import from, and to.
func twoServers(t *testing.T) (from, to *server) {
	t.Helper()
	return newWorld(t, "imp").startServer(serverOptions{}), newWorld(t, "imp").startServer(serverOptions{})
}

// importFrom runs the import, and returns its report too.
func (s *server) importFrom(from *server, args ...string) (output, map[string]any) {
	s.t.Helper()
	out := s.cli(append([]string{"import", "-from", from.socket(), "-output", "json"}, args...)...)
	var report map[string]any
	if out.stdout != "" {
		if err := json.Unmarshal([]byte(out.stdout), &report); err != nil {
			s.t.Fatalf("%v: %s", err, out.stdout)
		}
	}
	return out, report
}

// createMany makes entries in batches.
func (s *server) createMany(n int, entry func(i int) *types.Entry) {
	s.t.Helper()
	const batch = 250
	for i := 0; i < n; i += batch {
		req := &entryv1.BatchCreateEntryRequest{}
		for j := i; j < min(i+batch, n); j++ {
			req.Entries = append(req.Entries, entry(j))
		}
		resp, err := s.entries().BatchCreateEntry(bounded(s.t), req)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, r := range resp.GetResults() {
			if codes.Code(r.GetStatus().GetCode()) != codes.OK {
				s.t.Fatalf("creating an entry: %v", r.GetStatus())
			}
		}
	}
}

// fullEntry has a value in every field that a client sets.
func fullEntry(w *world, i int) *types.Entry {
	e := w.entry(fmt.Sprintf("/w%d", i), w.id("/node"), fmt.Sprintf("unix:uid:%d", i), "unix:gid:7")
	e.Id, e.X509SvidTtl, e.JwtSvidTtl, e.Hint = fmt.Sprintf("id-%d", i), int32(60+i), int32(30+i), fmt.Sprint("hint", i%3)
	e.Admin, e.Downstream, e.StoreSvid = i%2 == 0, i%3 == 0, i%5 == 0
	e.ExpiresAt, e.DnsNames = time.Now().Add(time.Duration(i+24)*time.Hour).Unix(), []string{"b.imp.test", fmt.Sprintf("a%d.imp.test", i)}
	e.FederatesWith = []string{"fed.test"}
	e.AdditionalAttributes = &types.Entry_AdditionalAttributes{DisableX509SvidPrefetch: i%2 == 0, JwtSvidIncludeJti: i%2 == 1}
	return e
}

// TestImport copies everything, with every field; changes nothing in a dry run
// and nothing when there is nothing to do; and lets SVIDs of either server verify
// with the bundle of the other.
func TestImport(t *testing.T) {
	t.Parallel()
	from, to := twoServers(t)
	foreign := newWorld(t, "fed").startServer(serverOptions{}).ownBundle()
	if _, err := from.bundles().BatchSetFederatedBundle(bounded(t), &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{foreign}}); err != nil {
		t.Fatal(err)
	}
	if _, err := trustdomainv1.NewTrustDomainClient(from.conn).BatchCreateFederationRelationship(bounded(t), &trustdomainv1.BatchCreateFederationRelationshipRequest{
		FederationRelationships: []*types.FederationRelationship{{TrustDomain: "fed.test", BundleEndpointUrl: "https://fed.test/", BundleEndpointProfile: &types.FederationRelationship_HttpsSpiffe{
			HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: "spiffe://fed.test/endpoint"},
		}}},
	}); err != nil {
		t.Fatal(err)
	}
	const n = 1234 // some pages
	from.createMany(n, func(i int) *types.Entry { return fullEntry(from.world, i) })
	eventually(t, "a second has passed", func() error { // so that created_at would show
		if want := from.allEntries(); time.Now().Unix() <= want["id-1"].GetCreatedAt() {
			return fmt.Errorf("not yet")
		}
		return nil
	})

	before := to.ownBundle()
	out, report := to.importFrom(from, "--dry-run")
	entries, _ := report["entries"].(map[string]any)
	if out.code != 0 || entries["created"] != float64(n) || report["changes"] != float64(0) {
		t.Fatalf("the dry run ended with %d: %s%s", out.code, out.stdout, out.stderr)
	}
	if diff := cmp.Diff(before, to.ownBundle(), protocmp.Transform()); diff != "" || len(to.allEntries()) != 0 {
		t.Fatalf("the dry run wrote: %s, %d entries", diff, len(to.allEntries()))
	}

	out, report = to.importFrom(from)
	entries, _ = report["entries"].(map[string]any)
	if out.code != 0 || out.stderr != "" || entries["created"] != float64(n) || entries["verified"] != true || entries["digest_here"] != entries["digest_there"] {
		t.Fatalf("the import ended with %d: %s%s", out.code, out.stdout, out.stderr)
	}
	if diff := cmp.Diff(from.allEntries(), to.allEntries(), protocmp.Transform(), protocmp.IgnoreFields(&types.Entry{}, "revision_number")); diff != "" {
		t.Errorf("entries (-there +here):\n%s", diff)
	}
	got, err := to.bundles().GetFederatedBundle(bounded(t), &bundlev1.GetFederatedBundleRequest{TrustDomain: "fed.test"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(foreign, got, protocmp.Transform(), protocmp.IgnoreFields(&types.Bundle{}, "sequence_number")); diff != "" {
		t.Errorf("the federated bundle (-there +here):\n%s", diff)
	}
	if shown := to.cli("federation", "show", "-trustDomain", "fed.test").stdout; !strings.Contains(shown, "spiffe://fed.test/endpoint") {
		t.Errorf("the relationship: %s", shown)
	}
	for _, s := range []*server{from, to} {
		if b := s.ownBundle(); len(b.GetX509Authorities()) != 2 || len(b.GetJwtAuthorities()) != 2 {
			t.Errorf("a server has %d X.509 and %d JWT authorities", len(b.GetX509Authorities()), len(b.GetJwtAuthorities()))
		}
	}

	if out, report = to.importFrom(from); out.code != 0 || report["changes"] != float64(0) {
		t.Errorf("the second import ended with %d: %s%s", out.code, out.stdout, out.stderr)
	}
	if out := to.cli("import", "-from", from.socket()); !strings.Contains(out.stdout, "Nothing to do: both servers are alike.") {
		t.Errorf("the third said: %s", out.stdout)
	}
}

// TestImportNamesWhatItCannot: what is different here is left alone and named,
// what the server refuses is named, and everything else is copied.
func TestImportNamesWhatItCannot(t *testing.T) {
	t.Parallel()
	from, to := twoServers(t)
	with := func(id, path, selector string, ttl int32) *types.Entry {
		e := from.entry(path, from.id("/node"), selector)
		e.Id, e.X509SvidTtl = id, ttl
		return e
	}
	for _, e := range []*types.Entry{with("same", "/a", "u:1", 60), with("differs", "/b", "u:2", 60), with("similar", "/c", "u:3", 60), with("new", "/d", "u:4", 60)} {
		from.create(e)
	}
	orphan := from.entry("/e", from.id("/spire/agent/join_token/gone"), "u:5")
	orphan.Id = "orphan"
	from.create(orphan)
	for _, e := range []*types.Entry{with("same", "/a", "u:1", 60), with("differs", "/b", "u:2", 99), with("another", "/c", "u:3", 60), with("own", "/own", "u:9", 0)} {
		to.create(e)
	}
	out, report := to.importFrom(from, "-no-authorities", "-no-federation")
	if out.code != 1 || report["problems"] != float64(2) {
		t.Fatalf("the import ended with %d: %s%s", out.code, out.stdout, out.stderr)
	}
	for _, want := range []string{
		"Failed to import the entry differs: it is different here, in x509_svid_ttl; use -overwrite to take what is there\n",
		"Failed to import the entry similar: similar entry already exists: here it is entry another; delete that one and run this again\n",
		"Warning: entries with the parent spiffe://imp.test/spire/agent/join_token/gone will find no agent here",
		"Error: not everything was copied\n",
	} {
		if !strings.Contains(out.stderr, want) {
			t.Errorf("no %q in:\n%s", want, out.stderr)
		}
	}
	if all := to.allEntries(); all["differs"].GetX509SvidTtl() != 99 || all["new"] == nil || all["own"] == nil || all["orphan"] == nil || len(all) != 6 {
		t.Errorf("entries: %v", all)
	}
	if b := to.ownBundle(); len(b.GetX509Authorities()) != 1 {
		t.Errorf("-no-authorities: %d X.509 authorities", len(b.GetX509Authorities()))
	}
	if out := to.cli("entry", "delete", "-entryID", "another"); out.code != 0 {
		t.Fatal(out.stderr)
	}
	out, report = to.importFrom(from, "-overwrite", "-no-authorities", "-no-federation")
	entries, _ := report["entries"].(map[string]any)
	if out.code != 0 || entries["updated"] != float64(1) || entries["created"] != float64(1) || entries["only_here"] != float64(1) {
		t.Errorf("with -overwrite it ended with %d: %s%s", out.code, out.stdout, out.stderr)
	}
}

// TestImportOfLargeEntries: what fits into one call each, and not together.
func TestImportOfLargeEntries(t *testing.T) {
	t.Parallel()
	from, to := twoServers(t)
	const n = 40
	for i := range n {
		e := from.entry(fmt.Sprintf("/w%d", i), from.id("/node"), fmt.Sprintf("unix:uid:%d", i))
		for j := range 200 {
			e.Selectors = append(e.Selectors, &types.Selector{Type: "large", Value: fmt.Sprintf("%d-%s", j, strings.Repeat("x", 900))})
		}
		from.create(e)
	}
	out, report := to.importFrom(from)
	entries, _ := report["entries"].(map[string]any)
	if out.code != 0 || entries["created"] != float64(n) || entries["verified"] != true {
		t.Fatalf("the import ended with %d: %s%s", out.code, out.stdout, out.stderr)
	}
}

func TestImportRefuses(t *testing.T) {
	t.Parallel()
	s, other := newWorld(t, "imp").startServer(serverOptions{}), newWorld(t, "oth").startServer(serverOptions{})
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"no source":            {nil, "-from is required"},
		"itself":               {[]string{"-from", s.socket()}, "-from is the socket of this server"},
		"a negative pause":     {[]string{"-from", other.socket(), "-every", "-1s"}, "-every: -1s is negative"},
		"a dry run repeated":   {[]string{"-from", other.socket(), "-every", "1s", "-dry-run"}, "-every and -dry-run exclude each other"},
		"nobody":               {[]string{"-from", "/nowhere/api.sock"}, "no socket at /nowhere/api.sock"},
		"another trust domain": {[]string{"-from", other.socket()}, `"oth.test" there and "imp.test" here`},
	} {
		if out := s.cli(append([]string{"import"}, c.args...)...); out.code != 1 || !strings.Contains(out.stderr, c.want) {
			t.Errorf("%s: it ended with %d: %s", name, out.code, out.stderr)
		}
	}
}

// TestImportOverAnExportedSocket: whoever has administered SPIRE may have its
// socket in the environment.
func TestImportOverAnExportedSocket(t *testing.T) {
	t.Parallel()
	from, to := twoServers(t)
	for name, c := range map[string]struct {
		args []string
		env  string
		code int
		want string
	}{
		"the source's, and ours by flag": {[]string{"-socketPath", to.socket()}, from.socket(), 0, "Nothing was written: this was a dry run."},
		"the source's alone":             {nil, from.socket(), 1, "-from is the socket of this server"},
	} {
		cmd := to.command(to.bin.server, append([]string{"import", "-dry-run", "-from", from.socket()}, c.args...)...)
		cmd.Env = append(cmd.Env, "SPIRE_SERVER_PRIVATE_SOCKET="+c.env)
		if out := to.runCommand(cmd); out.code != c.code || !strings.Contains(out.stdout+out.stderr, c.want) {
			t.Errorf("%s: it ended with %d: %s%s", name, out.code, out.stdout, out.stderr)
		}
	}
}

// TestImportGoesOn: an import that is killed at any moment is taken up by the
// next one.
func TestImportGoesOn(t *testing.T) {
	t.Parallel()
	from, to := twoServers(t)
	const n = 6000
	from.createMany(n, func(i int) *types.Entry {
		e := from.entry(fmt.Sprintf("/w%d", i), from.id("/node"), fmt.Sprintf("unix:uid:%d", i))
		e.Id = fmt.Sprintf("id-%d", i)
		return e
	})
	interrupted := 0
	for have := 0; have < n/2; {
		before := have
		cmd := exec.CommandContext(t.Context(), to.bin.server, "import", "-from", from.socket(), "-socketPath", to.socket())
		p := to.launch("import", cmd)
		eventually(t, "some entries are here", func() error {
			if have = len(to.allEntries()); have <= before {
				return fmt.Errorf("%d", have)
			}
			return nil
		})
		p.kill(t)
		if have = len(to.allEntries()); have < n {
			interrupted++
		}
	}
	if interrupted == 0 {
		t.Log("no import could be killed in time")
	}
	out, report := to.importFrom(from)
	entries, _ := report["entries"].(map[string]any)
	if out.code != 0 || entries["verified"] != true || entries["there"] != float64(n) {
		t.Fatalf("the last import ended with %d: %s%s", out.code, out.stdout, out.stderr)
	}
	t.Logf("killed %d times; the last import found %v and made %v", interrupted, entries["same"], entries["created"])
	if diff := cmp.Diff(from.allEntries(), to.allEntries(), protocmp.Transform(), protocmp.IgnoreFields(&types.Entry{}, "revision_number")); diff != "" {
		t.Errorf("entries (-there +here):\n%s", diff)
	}
}

// ownBundle is the bundle of the server's trust domain.
func (s *server) ownBundle() *types.Bundle {
	s.t.Helper()
	b, err := s.bundles().GetBundle(bounded(s.t), &bundlev1.GetBundleRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}
