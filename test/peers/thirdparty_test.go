package peers

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
)

// shortLived is a server whose workloads' SVIDs are renewed every 10 s or so.
func shortLived(t *testing.T) *node {
	t.Helper()
	own := ours(t)
	n := startSide(t, own, `default_x509_svid_ttl = "20s"`).startNode(own)
	n.create(t, n.mine("/first"))
	eventually(t, "the workload has an identity", func() error {
		_, err := fetchOnce(t, n)
		return err
	})
	return n
}

func fetchOnce(t *testing.T, n *node) (*workloadapi.X509Context, error) {
	return workloadapi.FetchX509Context(bounded(t), workloadapi.WithAddr("unix://"+n.socket()))
}

// TestSPIFFEHelper: spiffe-helper writes the SVID of our agent to files, and the
// next one in time.
func TestSPIFFEHelper(t *testing.T) {
	t.Parallel()
	file := program(t, "SPIFFE_HELPER_BIN", "spiffe-helper")
	n := shortLived(t)
	certs := n.path("certs")
	if err := os.Mkdir(certs, 0o755); err != nil {
		t.Fatal(err)
	}
	n.write("helper.conf", fmt.Sprintf(`
agent_address = %q
cert_dir = %q
svid_file_name = "svid.pem"
svid_key_file_name = "svid_key.pem"
svid_bundle_file_name = "svid_bundle.pem"
jwt_svids = [{ jwt_audience = "them", jwt_svid_file_name = "jwt.token" }]
jwt_bundle_file_name = "jwt_bundle.json"
`, n.socket(), certs))
	launch(t, "spiffe-helper", exec.Command(file, "-config", n.path("helper.conf")))

	var first *big.Int
	eventually(t, "the files are there and fit", func() (err error) {
		first, err = checkFiles(certs)
		return err
	})
	eventually(t, "the files are renewed", func() error {
		serial, err := checkFiles(certs)
		if err == nil && serial.Cmp(first) == 0 {
			err = errNotYet
		}
		return err
	})
	for _, name := range []string{"jwt.token", "jwt_bundle.json"} {
		if info, err := os.Stat(filepath.Join(certs, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// checkFiles holds the files against each other and returns the serial number.
func checkFiles(dir string) (*big.Int, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "svid_key.pem"))
	if err != nil {
		return nil, err
	}
	bundle, err := os.ReadFile(filepath.Join(dir, "svid_bundle.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return nil, err
	}
	return pair.Leaf.SerialNumber, nil
}

// TestGhostunnel: two ghostunnels with identities of our agent keep a tunnel,
// with one TCP connection open all the time and another new one every moment,
// while their SVIDs are renewed.
func TestGhostunnel(t *testing.T) {
	t.Parallel()
	file := program(t, "GHOSTUNNEL_BIN", "ghostunnel")
	n := shortLived(t)
	backend := echoServer(t)
	outer, inner := fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	api := "--use-workload-api-addr=unix://" + n.socket()
	launch(t, "ghostunnel server", exec.Command(file, "server", api, "--listen", outer, "--target", backend, "--allow-uri", "spiffe://example.org/first"))
	launch(t, "ghostunnel client", exec.Command(file, "client", api, "--listen", inner, "--target", outer, "--verify-uri", "spiffe://example.org/first"))

	var lasting net.Conn
	eventually(t, "the tunnel is open", func() (err error) {
		lasting, err = roundTrip(inner, nil)
		return err
	})
	defer lasting.Close()
	serials := map[string]bool{}
	connections := 0
	for deadline := time.Now().Add(patience); len(serials) < 3; {
		if time.Now().After(deadline) {
			t.Fatalf("the server showed %d certificates in %v, want 3", len(serials), patience)
		}
		conn, err := roundTrip(inner, nil)
		if err != nil {
			t.Fatalf("a new connection, after %d: %v", connections, err)
		}
		connections++
		if _, err := roundTrip("", lasting); err != nil {
			t.Fatalf("the connection of before: %v", err)
		}
		serials[shown(t, n, outer)] = true
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Logf("%d connections over the tunnel while the server showed %d certificates", connections, len(serials))
}

// roundTrip sends something and wants it back, over a connection or a new one.
func roundTrip(addr string, conn net.Conn) (_ net.Conn, err error) {
	if conn == nil {
		if conn, err = net.DialTimeout("tcp", addr, time.Second); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, "hello"); err != nil {
		return nil, err
	}
	back := make([]byte, 5)
	if _, err := io.ReadFull(conn, back); err != nil {
		return nil, err
	}
	return conn, nil
}

// shown is the serial number of the certificate that a TLS server shows to a
// workload of ours.
func shown(t *testing.T, n *node, addr string) string {
	t.Helper()
	c, err := fetchOnce(t, n)
	if err != nil {
		t.Fatal(err)
	}
	own := c.DefaultSVID()
	conn, err := tls.Dial("tcp", addr, &tls.Config{
		MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, // the tunnels verify; here the certificate is looked at
		Certificates: []tls.Certificate{{Certificate: [][]byte{own.Certificates[0].Raw}, PrivateKey: own.PrivateKey}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// echoServer answers with what it is sent, and returns its address.
func echoServer(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	go func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	return lis.Addr().String()
}

const staticEntry = `apiVersion: spire.spiffe.io/v1alpha1
kind: ClusterStaticEntry
metadata:
  name: %[1]s
spec:
  spiffeID: spiffe://example.org/%[1]s
  parentID: spiffe://example.org/node
  selectors: ["k8s:ns:%[1]s", "k8s:sa:default"]
  x509SVIDTTL: 10m
  dnsNames: [%[1]s.svc, %[2]s.svc]
  hint: %[2]s
`

const staticFederation = `apiVersion: spire.spiffe.io/v1alpha1
kind: ClusterFederatedTrustDomain
metadata:
  name: other
spec:
  trustDomain: other.org
  bundleEndpointURL: https://other.org/%s
  bundleEndpointProfile:
    type: https_web
`

// TestControllerManager: spire-controller-manager in static mode makes what its
// files say, repairs and removes it, and leaves entries of others alone.
func TestControllerManager(t *testing.T) {
	t.Parallel()
	file := program(t, "CONTROLLER_MANAGER_BIN", "spire-controller-manager")
	s := startSide(t, ours(t))
	s.create(t, &types.Entry{Id: "others.one", SpiffeId: apiID("/of-others"), ParentId: apiID("/node"), Selectors: []*types.Selector{{Type: "unix", Value: "uid:1"}}})
	// The alias that a join token makes is its own.
	if _, err := agentv1.NewAgentClient(s.local).CreateJoinToken(bounded(t), &agentv1.CreateJoinTokenRequest{Ttl: 600, AgentId: apiID("/alias")}); err != nil {
		t.Fatal(err)
	}

	manifests := s.path("manifests")
	if err := os.Mkdir(manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	manifest := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(manifests, name+".yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	manifest("web", fmt.Sprintf(staticEntry, "web", "first"))
	manifest("api", fmt.Sprintf(staticEntry, "api", "first"))
	manifest("other", fmt.Sprintf(staticFederation, "bundle"))
	s.write("controller.yaml", fmt.Sprintf(`apiVersion: spire.spiffe.io/v1alpha1
kind: ControllerManagerConfig
clusterName: c1
clusterDomain: cluster.local
trustDomain: example.org
entryIDPrefix: c1
gcInterval: 1000000000
spireServerSocketPath: %s
staticManifestPath: %s
metrics:
  bindAddress: "0"
health:
  healthProbeBindAddress: "0"
`, s.socket(), manifests))
	controller := launch(t, "spire-controller-manager", exec.Command(file, "-config", s.path("controller.yaml")))

	s.has(t, "what the files say", "others.one /of-others", "<uuid> /alias", "c1.… /api first 600 api.svc,first.svc", "c1.… /web first 600 web.svc,first.svc")
	s.federates(t, "https://other.org/bundle")

	manifest("web", fmt.Sprintf(staticEntry, "web", "second"))
	manifest("other", fmt.Sprintf(staticFederation, "moved"))
	s.has(t, "what was changed", "others.one /of-others", "<uuid> /alias", "c1.… /api first 600 api.svc,first.svc", "c1.… /web second 600 web.svc,second.svc")
	s.federates(t, "https://other.org/moved")

	// Somebody meddles: it is put right.
	for id := range s.entries(t) {
		if strings.HasPrefix(id, "c1.") {
			if _, err := entryv1.NewEntryClient(s.local).BatchDeleteEntry(bounded(t), &entryv1.BatchDeleteEntryRequest{Ids: []string{id}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.has(t, "what was repaired", "others.one /of-others", "<uuid> /alias", "c1.… /api first 600 api.svc,first.svc", "c1.… /web second 600 web.svc,second.svc")

	if err := errors.Join(os.Remove(filepath.Join(manifests, "web.yaml")), os.Remove(filepath.Join(manifests, "other.yaml"))); err != nil {
		t.Fatal(err)
	}
	s.has(t, "what is left", "others.one /of-others", "<uuid> /alias", "c1.… /api first 600 api.svc,first.svc")
	s.federates(t)
	if text := controller.log.String(); strings.Contains(text, "ERROR") || strings.Contains(text, codes.Unimplemented.String()) {
		t.Errorf("the controller is not content:\n%s", text)
	}
}

// entries are all entries, by ID.
func (s *side) entries(t *testing.T) map[string]string {
	t.Helper()
	resp, err := entryv1.NewEntryClient(s.local).ListEntries(bounded(t), &entryv1.ListEntriesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range resp.GetEntries() {
		shown := e.GetId()
		if prefix, _, ok := strings.Cut(shown, "."); ok && prefix == "c1" {
			shown = "c1.…"
		}
		shown = uuid.ReplaceAllString(shown, "<uuid>")
		line := []string{shown, e.GetSpiffeId().GetPath()}
		if e.GetHint() != "" {
			line = append(line, e.GetHint(), fmt.Sprint(e.GetX509SvidTtl()), strings.Join(e.GetDnsNames(), ","))
		}
		out[e.GetId()] = strings.Join(line, " ")
	}
	return out
}

var errOther = errors.New("something else is there")

func (s *side) has(t *testing.T, what string, want ...string) {
	t.Helper()
	slices.Sort(want)
	eventually(t, what, func() error {
		var got []string
		for _, line := range s.entries(t) {
			got = append(got, line)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("%w: %q, want %q", errOther, got, want)
		}
		return nil
	})
}

func (s *side) federates(t *testing.T, urls ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("federation with %q", urls), func() error {
		resp, err := trustdomainv1.NewTrustDomainClient(s.local).ListFederationRelationships(bounded(t), &trustdomainv1.ListFederationRelationshipsRequest{})
		if err != nil {
			return err
		}
		var got []string
		for _, r := range resp.GetFederationRelationships() {
			got = append(got, r.GetBundleEndpointUrl())
		}
		if !slices.Equal(got, urls) {
			return fmt.Errorf("%w: %q", errOther, got)
		}
		return nil
	})
}
