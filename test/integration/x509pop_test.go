package integration

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1" // the fingerprint in agent IDs
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// machines is a PKI beside SPIFFE's, which gives machines certificates.
type machines struct {
	*world
	cert *x509.Certificate
	key  crypto.Signer
}

func (w *world) newMachines() *machines {
	w.t.Helper()
	m := &machines{world: w, key: w.newKey()}
	m.cert = m.sign(x509.Certificate{
		Subject: pkix.Name{CommonName: "machines"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, m.key.Public())
	return m
}

func (w *world) newKey() crypto.Signer {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	return key
}

func (m *machines) sign(tmpl x509.Certificate, pub crypto.PublicKey) *x509.Certificate {
	m.t.Helper()
	tmpl.SerialNumber = big.NewInt(0x17)
	tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	parent := m.cert
	if parent == nil {
		parent = &tmpl
	}
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, parent, pub, m.key)
	if err != nil {
		m.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		m.t.Fatal(err)
	}
	return cert
}

func (w *world) pemFile(path, kind string, der []byte) string {
	w.t.Helper()
	writeFile(w.t, path, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
	return path
}

// plugin is the server's line that trusts these machines.
func (m *machines) plugin() string {
	m.t.Helper()
	return fmt.Sprintf("NodeAttestor \"x509pop\" { plugin_data { ca_bundle_path = %q } }", m.pemFile(m.path("machines.pem"), "CERTIFICATE", m.cert.Raw))
}

// machine is one of them: two files.
type machine struct {
	key  crypto.Signer
	cert *x509.Certificate
	dir  string
}

func (m *machines) newMachine(name string) *machine {
	m.t.Helper()
	out := &machine{key: m.newKey(), dir: m.path("machine-" + name)}
	out.cert = m.sign(x509.Certificate{Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature}, out.key.Public())
	der, err := x509.MarshalPKCS8PrivateKey(out.key)
	if err != nil {
		m.t.Fatal(err)
	}
	m.pemFile(out.dir+"/key.pem", "PRIVATE KEY", der)
	m.pemFile(out.dir+"/cert.pem", "CERTIFICATE", out.cert.Raw)
	return out
}

func (m *machine) plugin() string {
	return fmt.Sprintf("NodeAttestor \"x509pop\" { plugin_data { private_key_path = %q certificate_path = %q } }", m.dir+"/key.pem", m.dir+"/cert.pem")
}

// agentID is the agent's on this machine.
func (m *machine) agentID(w *world) spiffeid.ID {
	sum := sha1.Sum(m.cert.Raw) // the fingerprint in agent IDs
	return w.id("/spire/agent/x509pop/" + hex.EncodeToString(sum[:]))
}

// known is the agent as the server has it.
func (s *server) known(id spiffeid.ID) (*types.Agent, error) {
	return s.agents().GetAgent(bounded(s.t), &agentv1.GetAgentRequest{Id: apiID(id)})
}

// startMachine makes a machine with an agent that has attested, and a workload
// on it.
func startMachine(s *server, m *machines, name string, o agentOptions) (*machine, *agent) {
	s.t.Helper()
	box := m.newMachine(name)
	o.attestor = box.plugin()
	a := s.newAgent(s, name, o)
	a.start()
	s.create(s.entry("/node-"+name, s.id("/spire/server"), "x509pop:subject:cn:"+name))
	s.create(s.entry("/web-"+name, s.id("/node-"+name), self()))
	sees(s.t, a, s.id("/web-"+name))
	return box, a
}

// A machine with a certificate gets from nothing to an SVID without anybody's
// help; its agent comes back after a restart, also when it has lost its key.
func TestX509POPFromNothingToSVID(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "pop")
	m := w.newMachines()
	s := w.startServer(serverOptions{plugins: m.plugin()})
	box, a := startMachine(s, m, "m7", agentOptions{memoryKeys: true})
	got, err := s.known(box.agentID(w))
	if err != nil {
		t.Fatal(err)
	}
	if got.GetAttestationType() != "x509pop" || !got.GetCanReattest() || len(got.GetSelectors()) != 3 {
		t.Errorf("the server has %v", got)
	}
	u, err := fetchX509(t, a.conn)
	if err != nil {
		t.Fatal(err)
	}
	u.find(w.id("/web-m7")).verify(t)
	for _, end := range []func(){a.stop, a.kill} {
		end()
		a.start()
		sees(t, a, w.id("/web-m7"))
	}
	if again, err := s.known(box.agentID(w)); err != nil || again.GetX509SvidSerialNumber() == got.GetX509SvidSerialNumber() {
		t.Errorf("after a restart without its key, the agent is %v, %v, want one with a new SVID", again, err)
	}

	// A machine of somebody else is told what to do, and its agent ends.
	stranger := w.newMachines().newMachine("m8")
	b := w.newAgent(s, "b", agentOptions{attestor: stranger.plugin()})
	wantOneLine(t, s.endsAtOnce(b.run()), "the server refuses to attest this agent; the server's log has the reason")
	if log := s.proc.log.String(); !strings.Contains(log, "the certificate is not trusted") {
		t.Error("the server's log has not the reason")
	}
}

// An evicted agent that can attest again does, with the same ID, and serves its
// workloads again, all by itself. When its certificate is no good at that moment
// it tries on until there is another.
func TestX509POPEvictedAgentComesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "popevict")
	m := w.newMachines()
	s := w.startServer(serverOptions{plugins: m.plugin()})
	box, a := startMachine(s, m, "m7", agentOptions{})
	stream := streamOf(t, a, w.id("/web-m7"))
	begin := time.Now()
	s.evict(box.agentID(w))
	stream.until("the stream ends or goes on", func(u x509Update) bool { return u.err != nil || u.find(w.id("/web-m7")) != nil })
	sees(t, a, w.id("/web-m7"))
	t.Logf("evicted, attested and serving again after %v", time.Since(begin).Round(time.Millisecond))
	if got, err := s.known(box.agentID(w)); err != nil {
		t.Errorf("the server has %v, %v", got, err)
	}

	// What another house's machine has instead of its own files is no good.
	stranger := w.newMachines().newMachine("m7")
	w.replace(box, stranger)
	s.evict(box.agentID(w))
	a.proc.await(t, "the server refuses to attest this agent")
	if !a.proc.running() {
		t.Fatal("the agent has ended")
	}
	renewed := m.newMachine("m7") // in the place of the files before
	eventuallyWithin(t, 2*patience, "the agent is back with a new certificate", func() error {
		_, err := s.known(renewed.agentID(w))
		return err
	})
	sees(t, a, w.id("/web-m7"))
}

// replace puts another machine's files in the place of a machine's.
func (w *world) replace(box, by *machine) {
	w.t.Helper()
	for _, name := range []string{"/key.pem", "/cert.pem"} {
		text, err := os.ReadFile(by.dir + name)
		if err != nil {
			w.t.Fatal(err)
		}
		writeFile(w.t, box.dir+name, string(text))
	}
}

// A banned agent ends and says what to do, however good its certificate; only
// lifting the ban lets it in again.
func TestX509POPBannedAgentEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "popban")
	m := w.newMachines()
	s := w.startServer(serverOptions{plugins: m.plugin()})
	box, a := startMachine(s, m, "m7", agentOptions{settings: "persist_svids = true"})
	const line = "the server has banned this agent; lift the ban with `credence-server agent evict`"
	svid := sees(t, a, w.id("/web-m7")).find(w.id("/web-m7"))
	s.ban(box.agentID(w))
	if code := a.proc.exit(t, patience); code != 1 {
		t.Errorf("the agent ended with exit code %d, want 1", code)
	}
	wantOneLine(t, output{code: 1, stderr: a.proc.log.String()}, line)
	if onDisk(t, a, svid.leaf.Raw) {
		t.Error("the SVID is on the agent's disk still")
	}
	for range 2 {
		wantOneLine(t, s.endsAtOnce(a.run()), line)
	}
	if got, err := s.known(box.agentID(w)); err != nil || !got.GetBanned() {
		t.Errorf("the server has %v, %v", got, err)
	}
	s.evict(box.agentID(w))
	a.start()
	sees(t, a, w.id("/web-m7"))
}

// The server is away until the agents' own SVIDs have ended. The one that can
// attest again is back by itself; the one with the token of old ends and says
// what to do.
func TestServerIsBackAfterAgentsExpired(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "popexpire")
	m := w.newMachines()
	s := w.startServer(serverOptions{plugins: m.plugin(), settings: `agent_ttl = "6s"`})
	box, a := startMachine(s, m, "m7", agentOptions{})
	byToken := w.startAgent(s, "t", agentOptions{})
	eventually(t, "the agent attests again at half its life", func() error {
		if a.renewals() == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	before, err := s.known(box.agentID(w))
	if err != nil {
		t.Fatal(err)
	}
	s.stop()
	sleepUntil(t, time.Now().Add(8*time.Second))
	sees(t, a, w.id("/web-m7")) // what workloads have does not end with it
	s.start()
	eventually(t, "the agent is back with a new SVID", func() error {
		got, err := s.known(box.agentID(w))
		if err == nil && got.GetX509SvidSerialNumber() == before.GetX509SvidSerialNumber() {
			err = errors.New("it has its old one")
		}
		return err
	})
	s.create(w.entry("/second", w.id("/node-m7"), self()))
	sees(t, a, w.id("/web-m7"), w.id("/second"))
	if code := byToken.proc.exit(t, patience); code != 1 {
		t.Errorf("the agent with the token ended with exit code %d, want 1", code)
	}
	wantOneLine(t, output{code: 1, stderr: byToken.proc.log.String()}, "credence-server token generate")
}

// An agent attests by an X509-SVID that another agent's Workload API gives it, in
// the mode spiffe: no file holds a key.
func TestX509POPExchangesAnSVID(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "popspiffe")
	s := w.startServer(serverOptions{plugins: `NodeAttestor "x509pop" { plugin_data { mode = "spiffe" } }`})
	first := w.startAgent(s, "first", agentOptions{})
	inner := w.newAgent(s, "inner", agentOptions{memoryKeys: true, attestor: fmt.Sprintf(
		"NodeAttestor \"x509pop\" { plugin_data { spiffe_endpoint_socket = %q } }", "unix://"+first.socket())})
	// It waits for its own entry.
	inner.run()
	inner.proc.await(t, "no identity issued")
	s.create(w.entry("/spire-exchange/inner", first.id(), self()))
	healthy(t, inner.proc, inner.conn)
	id := w.id("/spire/agent/x509pop/inner")
	if got, err := s.known(id); err != nil || !got.GetCanReattest() {
		t.Errorf("the server has %v, %v", got, err)
	}
	s.create(w.entry("/web", id, self()))
	sees(t, inner, w.id("/web"))
	// Banned, it cannot exchange its way back in.
	s.ban(id)
	if code := inner.proc.exit(t, patience); code != 1 {
		t.Errorf("the agent ended with exit code %d, want 1", code)
	}
	wantOneLine(t, s.endsAtOnce(inner.run()), "the server has banned this agent")
}
