package peers

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // SPIRE's fingerprint
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const joinTokenPlugin = `NodeAttestor "join_token" { plugin_data {} }`

// machinePKI is what an organisation has beside SPIFFE: a root, an authority
// below it, and a machine with a certificate.
type machinePKI struct {
	root, inter, leaf *x509.Certificate
	key               crypto.Signer
}

func newMachinePKI(t *testing.T, key crypto.Signer) machinePKI {
	t.Helper()
	rootKey, interKey := newKey(t), newKey(t)
	sign := func(tmpl *x509.Certificate, pub crypto.PublicKey, parent *x509.Certificate, by crypto.Signer) *x509.Certificate {
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
		if parent == nil {
			parent = tmpl
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, by)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	ca := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
	}
	p := machinePKI{key: key}
	p.root = sign(ca("root"), rootKey.Public(), nil, rootKey)
	p.inter = sign(ca("intermediate"), interKey.Public(), p.root, rootKey)
	p.leaf = sign(&x509.Certificate{
		SerialNumber: big.NewInt(0xabc), Subject: pkix.Name{CommonName: "machine 7"}, KeyUsage: x509.KeyUsageDigitalSignature,
		URIs: []*url.URL{
			{Scheme: "x509pop", Host: testTD.Name(), Path: "/datacenter/east/1"},
			{Scheme: "x509pop", Host: testTD.Name(), Path: "/rack/7"},
			{Scheme: "https", Host: "elsewhere.test", Path: "/x"},
		},
	}, key.Public(), p.inter, interKey)
	return p
}

func fingerprint(c *x509.Certificate) string {
	sum := sha1.Sum(c.Raw) // SPIRE's fingerprint
	return hex.EncodeToString(sum[:])
}

// pemFile writes certificates or a key into the side's folder.
func (s *side) pemFile(name, kind string, blocks ...[]byte) string {
	s.t.Helper()
	var out []byte
	for _, b := range blocks {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b})...)
	}
	s.write(name, string(out))
	return s.path(name)
}

func (s *side) keyFile(name string, key crypto.Signer) string {
	s.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.pemFile(name, "PRIVATE KEY", der)
}

// startX509POPSide starts a server with x509pop beside join_token.
func startX509POPSide(t *testing.T, bin programs, data func(*side) string, settings ...string) *side {
	t.Helper()
	s := newSide(t, bin, settings...)
	text, err := os.ReadFile(s.path("server.conf"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), joinTokenPlugin) {
		t.Fatalf("the configuration has not the line %s", joinTokenPlugin)
	}
	s.write("server.conf", strings.Replace(string(text), joinTokenPlugin,
		joinTokenPlugin+fmt.Sprintf("\n\tNodeAttestor \"x509pop\" { plugin_data {\n%s\n} }", data(s)), 1))
	s.start()
	return s
}

// runX509POPAgent runs an agent, ours or SPIRE's, on the side's server.
func (s *side) runX509POPAgent(bin programs, data string) *process {
	s.t.Helper()
	bundle, err := bundlev1.NewBundleClient(s.local).GetBundle(bounded(s.t), &bundlev1.GetBundleRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	var roots [][]byte
	for _, a := range bundle.GetX509Authorities() {
		roots = append(roots, a.GetAsn1())
	}
	s.write("agent.conf", fmt.Sprintf(`
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
	NodeAttestor "x509pop" { plugin_data { %s } }
	WorkloadAttestor "unix" { plugin_data {} }
}
`, testTD.Name(), s.path("agent"), s.port, s.agentSocket(), s.pemFile("bundle.pem", "CERTIFICATE", roots...), s.path("agent"), data))
	return launch(s.t, bin.name+" agent", exec.Command(bin.agent(), "run", "-config", s.path("agent.conf")))
}

func (s *side) agentSocket() string { return s.path("public", "api.sock") }

// onlyAgent waits until the server has one agent that satisfies ok.
func (s *side) onlyAgent(what string, p *process, ok func(*types.Agent) bool) *types.Agent {
	s.t.Helper()
	var found *types.Agent
	eventually(s.t, what, func() error {
		if p != nil && !p.running() {
			s.t.Fatalf("%s ended", p.name)
		}
		list, err := agentv1.NewAgentClient(s.local).ListAgents(bounded(s.t), &agentv1.ListAgentsRequest{})
		if err != nil {
			return err
		}
		if n := len(list.GetAgents()); n != 1 {
			return fmt.Errorf("the server has %d agents", n)
		}
		if found = list.GetAgents()[0]; !ok(found) {
			return fmt.Errorf("it has %v", found)
		}
		return nil
	})
	return found
}

func anyAgent(*types.Agent) bool { return true }

// serves waits until the agent gives this process the SVID.
func (s *side) serves(path string) {
	s.t.Helper()
	eventually(s.t, "the agent serves "+path, func() error {
		svid, err := workloadapi.FetchX509SVID(bounded(s.t), workloadapi.WithAddr("unix://"+s.agentSocket()))
		if err == nil && svid.ID.Path() != path {
			err = fmt.Errorf("it serves %s", svid.ID)
		}
		return err
	})
}

func (s *side) register(path, parent string, selectors ...*types.Selector) {
	s.t.Helper()
	resp, err := entryv1.NewEntryClient(s.local).BatchCreateEntry(bounded(s.t), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{
		SpiffeId: apiID(path), ParentId: apiID(parent), Selectors: selectors,
	}}})
	if err != nil || codes.Code(resp.GetResults()[0].GetStatus().GetCode()) != codes.OK {
		s.t.Fatalf("creating an entry: %v, %v", resp, err)
	}
}

// pairs are a server of one house and an agent of the other.
func pairs(t *testing.T) map[string][2]programs {
	t.Helper()
	theirs, mine := spire(t), ours(t)
	return map[string][2]programs{"SPIRE's agent on our server": {mine, theirs}, "our agent on SPIRE's server": {theirs, mine}}
}

// TestX509POPExternalPKI: each house's agent attests to the other's server, is
// known there as it would be at home, comes back after it was evicted, and ends
// when it is banned.
func TestX509POPExternalPKI(t *testing.T) {
	t.Parallel()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]crypto.Signer{"RSA": rsaKey, "P-384": p384}
	for name, pair := range pairs(t) {
		for kind, key := range keys {
			t.Run(name+", "+kind, func(t *testing.T) {
				t.Parallel()
				pki := newMachinePKI(t, key)
				s := startX509POPSide(t, pair[0], func(s *side) string {
					return fmt.Sprintf("ca_bundle_path = %q", s.pemFile("ca.pem", "CERTIFICATE", pki.root.Raw))
				})
				data := fmt.Sprintf("private_key_path = %q\ncertificate_path = %q\nintermediates_path = %q",
					s.keyFile("key.pem", key), s.pemFile("cert.pem", "CERTIFICATE", pki.leaf.Raw), s.pemFile("inter.pem", "CERTIFICATE", pki.inter.Raw))
				want := "/spire/agent/x509pop/" + fingerprint(pki.leaf)
				s.story(pair[1], data, want, []string{
					"subject:cn:machine 7", "serialnumber:0abc", "san:datacenter:east/1", "san:rack:7",
					"ca:fingerprint:" + fingerprint(pki.inter), "ca:fingerprint:" + fingerprint(pki.root),
				})
			})
		}
	}
}

// TestX509POPSPIFFE is the same for an X509-SVID of the trust domain.
func TestX509POPSPIFFE(t *testing.T) {
	t.Parallel()
	for name, pair := range pairs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startX509POPSide(t, pair[0], func(*side) string { return `mode = "spiffe"` })
			key := newKey(t)
			csr := newCSR(t, key, &x509.CertificateRequest{URIs: []*url.URL{{Scheme: "spiffe", Host: testTD.Name(), Path: "/spire-exchange/dc/host7"}}})
			resp, err := svidv1.NewSVIDClient(s.local).MintX509SVID(bounded(t), &svidv1.MintX509SVIDRequest{Csr: []byte(csr)})
			if err != nil {
				t.Fatal(err)
			}
			leaf, err := x509.ParseCertificate(resp.GetSvid().GetCertChain()[0])
			if err != nil {
				t.Fatal(err)
			}
			root, err := bundlev1.NewBundleClient(s.local).GetBundle(bounded(t), &bundlev1.GetBundleRequest{})
			if err != nil {
				t.Fatal(err)
			}
			authority, err := x509.ParseCertificate(root.GetX509Authorities()[0].GetAsn1())
			if err != nil {
				t.Fatal(err)
			}
			data := fmt.Sprintf("private_key_path = %q\ncertificate_path = %q",
				s.keyFile("key.pem", key), s.pemFile("cert.pem", "CERTIFICATE", resp.GetSvid().GetCertChain()...))
			serial := leaf.SerialNumber.Text(16)
			if len(serial)%2 == 1 {
				serial = "0" + serial
			}
			want := []string{"serialnumber:" + serial, "ca:fingerprint:" + fingerprint(authority)}
			if cn := leaf.Subject.CommonName; cn != "" {
				want = append(want, "subject:cn:"+cn)
			}
			s.story(pair[1], data, "/spire/agent/x509pop/dc/host7", want)
		})
	}
}

// story is an agent's life: attested, serving, evicted, back, banned, and never
// back.
func (s *side) story(bin programs, data, wantPath string, wantSelectors []string) {
	t := s.t
	t.Helper()
	agent := s.runX509POPAgent(bin, data)
	first := s.onlyAgent("the agent attests", agent, anyAgent)
	var got []string
	for _, sel := range first.GetSelectors() {
		if sel.GetType() != "x509pop" {
			t.Errorf("a selector of type %q", sel.GetType())
		}
		got = append(got, sel.GetValue())
	}
	slices.Sort(got)
	slices.Sort(wantSelectors)
	if diff := cmp.Diff(wantSelectors, got); diff != "" {
		t.Errorf("selectors (-want +got):\n%s", diff)
	}
	if first.GetId().GetPath() != wantPath || first.GetAttestationType() != "x509pop" || !first.GetCanReattest() {
		t.Errorf("the agent is %v, want path %s", first, wantPath)
	}
	// By an alias of its selectors, so that these matter.
	s.register("/node", "/spire/server", &types.Selector{Type: "x509pop", Value: wantSelectors[0]})
	s.register("/workload", "/node", &types.Selector{Type: "unix", Value: fmt.Sprint("uid:", os.Getuid())})
	s.serves("/workload")
	t.Logf("%s on %s: %s %v, serves /workload", agent.name, s.proc.name, first.GetId().GetPath(), got)

	admin := agentv1.NewAgentClient(s.local)
	if _, err := admin.DeleteAgent(bounded(t), &agentv1.DeleteAgentRequest{Id: first.GetId()}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	back := s.onlyAgent("the evicted agent is back", agent, func(a *types.Agent) bool {
		return a.GetX509SvidSerialNumber() != "" && a.GetX509SvidSerialNumber() != first.GetX509SvidSerialNumber()
	})
	if back.GetId().GetPath() != wantPath {
		t.Errorf("it came back as %s", back.GetId().GetPath())
	}
	t.Logf("evicted, and back by itself after %v", time.Since(begin).Round(time.Millisecond))
	s.serves("/workload")

	if _, err := admin.BanAgent(bounded(t), &agentv1.BanAgentRequest{Id: first.GetId()}); err != nil {
		t.Fatal(err)
	}
	begin = time.Now()
	s.endsBanned(agent)
	t.Logf("banned, and ended after %v", time.Since(begin).Round(time.Millisecond))
	s.endsBanned(s.runX509POPAgent(bin, data))
	if a := s.onlyAgent("the agent is still banned", nil, anyAgent); !a.GetBanned() {
		t.Errorf("after it tried again, the server has %v", a)
	}
}

// endsBanned waits for the agent's end, and for what it says.
func (s *side) endsBanned(p *process) {
	s.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		s.t.Fatalf("%s is banned and still runs after %v", p.name, patience)
	}
	if code := p.cmd.ProcessState.ExitCode(); code == 0 {
		s.t.Errorf("%s is banned and ended with exit code 0", p.name)
	}
	if text := p.log.String(); !strings.Contains(text, "banned") {
		s.t.Errorf("%s does not say that it is banned", p.name)
	}
	for line := range strings.Lines(p.log.String()) {
		if strings.HasPrefix(line, "Error:") || strings.HasPrefix(line, "hint:") {
			s.t.Logf("%s: %s", p.name, strings.TrimSpace(line))
		}
	}
}

// TestX509POPAttestsAnew: at half of its SVID's life an agent of one house attests
// anew to the other's server, again and again, and its workload notices nothing.
func TestX509POPAttestsAnew(t *testing.T) {
	t.Parallel()
	for name, pair := range pairs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pki := newMachinePKI(t, newKey(t))
			s := startX509POPSide(t, pair[0], func(s *side) string {
				return fmt.Sprintf("ca_bundle_path = %q", s.pemFile("ca.pem", "CERTIFICATE", pki.root.Raw))
			}, `agent_ttl = "12s"`)
			agent := s.runX509POPAgent(pair[1], fmt.Sprintf("private_key_path = %q\ncertificate_path = %q",
				s.keyFile("key.pem", pki.key), s.pemFile("cert.pem", "CERTIFICATE", pki.leaf.Raw, pki.inter.Raw)))
			known := s.onlyAgent("the agent attests", agent, anyAgent)
			s.register("/workload", known.GetId().GetPath(), &types.Selector{Type: "unix", Value: fmt.Sprint("uid:", os.Getuid())})
			s.serves("/workload")
			for range 3 {
				serial := known.GetX509SvidSerialNumber()
				known = s.onlyAgent("the agent attests anew", agent, func(a *types.Agent) bool {
					if _, err := workloadapi.FetchX509SVID(bounded(t), workloadapi.WithAddr("unix://"+s.agentSocket())); err != nil {
						t.Errorf("meanwhile, a workload gets %v", err)
					}
					return a.GetX509SvidSerialNumber() != serial
				})
			}
			if text := agent.log.String(); strings.Contains(text, "NOT_ACTIVE") || strings.Contains(text, "is not active") {
				t.Error("the agent was refused by the serial number of an SVID it had replaced")
			}
		})
	}
}

// TestX509POPRefusals compares the code with which both servers refuse what is
// no good.
func TestX509POPRefusals(t *testing.T) {
	t.Parallel()
	theirs, mine := spire(t), ours(t)
	pki, other := newMachinePKI(t, newKey(t)), newMachinePKI(t, newKey(t))
	sides := [2]*side{}
	for i, bin := range []programs{theirs, mine} {
		sides[i] = startX509POPSide(t, bin, func(s *side) string {
			return fmt.Sprintf("ca_bundle_path = %q", s.pemFile("ca.pem", "CERTIFICATE", pki.root.Raw))
		})
	}
	show := func(certs ...*x509.Certificate) string {
		var parts []string
		for _, c := range certs {
			parts = append(parts, fmt.Sprintf("%q", base64.StdEncoding.EncodeToString(c.Raw)))
		}
		return `{"certificates":[` + strings.Join(parts, ",") + `]}`
	}
	good, nonce := show(pki.leaf, pki.inter), base64.StdEncoding.EncodeToString(make([]byte, 32))
	for name, c := range map[string]struct {
		payload, answer string
		want            codes.Code
	}{
		"no JSON":               {"x", "", codes.InvalidArgument},
		"no certificates":       {`{}`, "", codes.InvalidArgument},
		"no certificate":        {`{"certificates":["AAAA"]}`, "", codes.InvalidArgument},
		"a bad intermediate":    {strings.Replace(good, "]", `,"AAAA"]`, 1), "", codes.InvalidArgument},
		"too many":              {show(pki.leaf, pki.inter, pki.inter, pki.inter, pki.inter, pki.inter), "", codes.InvalidArgument},
		"another's":             {show(other.leaf, other.inter), "", codes.PermissionDenied},
		"without intermediate":  {show(pki.leaf), "", codes.PermissionDenied},
		"no JSON in the answer": {good, "x", codes.InvalidArgument},
		"a bad signature":       {good, `{"ecdsa_signature":{"nonce":"` + nonce + `","r":"AQ==","s":"AQ=="}}`, codes.PermissionDenied},
	} {
		for _, s := range sides {
			if got := s.attestX509POP(t, c.payload, c.answer); got != c.want {
				t.Errorf("%s, %s: %v, want %v", name, s.bin.name, got, c.want)
			}
		}
	}
}

// attestX509POP shows the payload, and gives the answer to a challenge.
func (s *side) attestX509POP(t *testing.T, payload, answer string) codes.Code {
	t.Helper()
	stream, err := agentv1.NewAgentClient(s.tcp(nil)).AttestAgent(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	csr := newCSR(t, newKey(t), &x509.CertificateRequest{})
	err = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data:   &types.AttestationData{Type: "x509pop", Payload: []byte(payload)},
		Params: &agentv1.AgentX509SVIDParams{Csr: []byte(csr)},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err == nil && resp.GetChallenge() != nil && answer != "" {
		if err := stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_ChallengeResponse{ChallengeResponse: []byte(answer)}}); err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
	}
	return status.Code(err)
}
