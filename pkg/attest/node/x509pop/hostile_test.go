package x509pop

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/attest/node/nodetest"
)

// hugeRSA is a certificate with a key that nobody has: bits of ones, and the
// exponent. It claims to be by issuer, with a signature that nobody made.
func hugeRSA(t testing.TB, issuer *authority, bits, exponent int, isCA bool) *x509.Certificate {
	t.Helper()
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits))
	n.Sub(n, big.NewInt(1))
	template := x509.Certificate{
		Subject: pkix.Name{CommonName: fmt.Sprint("huge ", bits, exponent)}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		IsCA: isCA, BasicConstraintsValid: isCA,
	}
	return issuer.issue(t, template, &rsa.PublicKey{N: n, E: exponent}, nil)
}

// hostile are payloads that must be refused, whoever signed what is in them.
func hostile(t testing.TB, root, inter *authority) map[string][]byte {
	t.Helper()
	key := newECDSA(t, elliptic.P256())
	good := newMachine(t, leaf("good"), key, root, inter)
	stranger := newAuthority(t, "stranger", nil)
	out := map[string][]byte{
		"no certificates":      []byte(`{"certificates":[]}`),
		"null":                 []byte(`{"certificates":null}`),
		"an empty certificate": []byte(`{"certificates":[""]}`),
		"21,000 empty ones":    []byte(`{"certificates":[` + strings.Repeat(`"",`, 21000) + `""]}`),
		"13,000 nulls":         []byte(`{"certificates":[` + strings.Repeat("null,", 13000) + `null]}`),
		"no base64":            []byte(`{"certificates":["!"]}`),
		"one of zeros":         encode(t, evidence{Certificates: [][]byte{make([]byte, 48<<10)}}),
		"too long":             append(payload(t, good.chain...), bytes.Repeat([]byte(" "), node.MaxMessage)...),
		"five intermediates":   payload(t, append(good.chain, inter.cert, inter.cert, inter.cert, inter.cert)...),
		"a stranger's":         payload(t, newMachine(t, leaf("x"), key, stranger).chain...),
		"RSA 8193":             payload(t, hugeRSA(t, root, 8193, 65537, false)),
		"RSA 32768":            payload(t, hugeRSA(t, root, 32768, 65537, false)),
		"RSA 100000":           payload(t, hugeRSA(t, root, 100000, 65537, false)),
		"exponent 65539":       payload(t, hugeRSA(t, root, 2048, 65539, false)),
		"exponent 2^31-1":      payload(t, hugeRSA(t, root, 8192, 1<<31-1, false)),
		"a huge intermediate":  payload(t, good.chain[0], hugeRSA(t, root, 16384, 65537, true)),
		"a large exponent":     payload(t, good.chain[0], inter.cert, hugeRSA(t, root, 8192, 1<<31-1, true)),
	}
	for name, chain := range cycles(t, root) {
		out[name] = payload(t, chain...)
	}
	out["many names"] = payload(t, manyNames(t, root))
	return out
}

// cycles are chains that a search from the leaf upwards would go round in: all
// the signatures are good, none is by the root.
func cycles(t testing.TB, root *authority) map[string][]*x509.Certificate {
	t.Helper()
	// Authorities of one name and one key certify each other in every order.
	key := rsaKey(t, 2048)
	same := func(serial int64) x509.Certificate {
		return x509.Certificate{
			Subject: root.cert.Subject, SerialNumber: big.NewInt(serial), IsCA: true, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageCertSign,
		}
	}
	self := &authority{key: key, cert: (*authority)(nil).issue(t, same(1), key.Public(), key)}
	var loop []*x509.Certificate
	for serial := range int64(4) {
		loop = append(loop, self.issue(t, same(10+serial), key.Public(), nil))
	}
	machineKey := newECDSA(t, elliptic.P256())
	end := self.issue(t, leaf("end"), machineKey.Public(), nil)
	// Two that certify each other.
	keyA, keyB := newECDSA(t, elliptic.P521()), newECDSA(t, elliptic.P521())
	named := func(name string) x509.Certificate {
		return x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	}
	a0 := &authority{key: keyA, cert: (*authority)(nil).issue(t, named("a"), keyA.Public(), keyA)}
	b := &authority{key: keyB, cert: a0.issue(t, named("b"), keyB.Public(), nil)}
	a := &authority{key: keyA, cert: b.issue(t, named("a"), keyA.Public(), nil)}
	return map[string][]*x509.Certificate{
		"a loop of one name": append([]*x509.Certificate{end}, loop...),
		"a loop of two":      {a.issue(t, leaf("end"), machineKey.Public(), nil), a.cert, b.cert},
		"one that is its own": {
			self.issue(t, leaf("end"), machineKey.Public(), nil), self.cert,
		},
	}
}

// manyNames is a stranger's certificate with as many names as fit.
func manyNames(t testing.TB, root *authority) *x509.Certificate {
	t.Helper()
	template := leaf("many")
	for i := range 1500 {
		template.DNSNames = append(template.DNSNames, fmt.Sprintf("h%d.example.org", i))
		template.URIs = append(template.URIs, &url.URL{Scheme: "a", Host: "b", Path: fmt.Sprint("/", i)})
	}
	stranger := newAuthority(t, root.cert.Subject.CommonName, nil)
	return stranger.issue(t, template, newECDSA(t, elliptic.P256()).Public(), nil)
}

// TestS07_StrangersAreCheap: what a stranger can send is refused within the
// limit, and without using a key that nobody trusted has signed.
func TestS07_StrangersAreCheap(t *testing.T) {
	runtime.LockOSThread() // whose processor time is counted
	defer runtime.UnlockOSThread()
	root := newAuthority(t, "root", nil)
	inter := newAuthority(t, "intermediate", root)
	for _, mode := range []string{modePKI, modeSPIFFE} {
		v := newVerifier(t, VerifierConfig{Mode: mode}, root)
		for name, message := range hostile(t, root, inter) {
			fastest := time.Hour
			for range 5 {
				start := cpuTime(t)
				_, err := v.Verify(t.Context(), node.Attempt{TrustDomain: td, Payload: message, Challenge: mute})
				fastest = min(fastest, cpuTime(t)-start)
				if !errors.Is(err, node.ErrMalformed) && !errors.Is(err, node.ErrRefused) {
					t.Errorf("%s: %v", name, err)
				}
			}
			t.Logf("%s, %s: refused in %v", mode, name, fastest)
			if fastest > nodetest.Limit {
				t.Errorf("%s, %s: refused in %v, at most %v are allowed", mode, name, fastest, nodetest.Limit)
			}
		}
	}
}

var errMute = errors.New("nothing may be asked")

func mute(context.Context, []byte) ([]byte, error) { return nil, errMute }

// TestS07_GenuineFromTheRoot: in a chain that strangers have added to, only
// certificates that the root's signatures lead to are looked at.
func TestS07_GenuineFromTheRoot(t *testing.T) {
	t.Parallel()
	root := newAuthority(t, "root", nil)
	inter := newAuthority(t, "intermediate", root)
	second := newAuthority(t, "second", inter)
	good := newMachine(t, leaf("good"), newECDSA(t, elliptic.P256()), root, inter, second)
	for name, loop := range cycles(t, root) {
		shown := append([]*x509.Certificate{good.chain[0]}, loop[1:]...)
		shown = append(shown, good.chain[2], good.chain[1]) // in an order that is not the chain's
		want := map[*x509.Certificate]bool{good.chain[0]: true, good.chain[1]: true, good.chain[2]: true}
		got := newRoots([]*x509.Certificate{root.cert}).genuine(shown)
		if len(got) != len(want) {
			t.Errorf("%s: %d are genuine, want %d", name, len(got), len(want))
		}
		for _, c := range got {
			if !want[c] {
				t.Errorf("%s: %s is genuine", name, c.Subject)
			}
		}
	}
}

// TestS08_Limits tries each limit and its neighbours.
func TestS08_Limits(t *testing.T) {
	t.Parallel()
	root := newAuthority(t, "root", nil)
	key := newECDSA(t, elliptic.P256())
	for n := range 5 {
		chain := []*authority{root}
		for i := range n {
			chain = append(chain, newAuthority(t, fmt.Sprint("i", i), chain[len(chain)-1]))
		}
		m := newMachine(t, leaf("x"), key, chain...)
		for limit := 1; limit <= 4; limit++ {
			_, err := m.attest(t, newVerifier(t, VerifierConfig{MaxIntermediates: &limit}, root))
			if (err == nil) != (n <= limit) {
				t.Errorf("%d intermediates, limit %d: %v", n, limit, err)
			}
		}
		if _, err := m.attest(t, newVerifier(t, VerifierConfig{}, root)); err != nil {
			t.Errorf("%d intermediates, default limit: %v", n, err)
		}
	}
	signer := rsaKey(t, 2048)
	m := newMachine(t, leaf("rsa"), signer, root)
	for limit, ok := range map[int]bool{2047: false, 2048: true, 2049: true} {
		if _, err := m.attest(t, newVerifier(t, VerifierConfig{MaxRSAKeySize: &limit}, root)); (err == nil) != ok {
			t.Errorf("RSA 2048, limit %d: %v", limit, err)
		}
	}
	for size, ok := range map[int]bool{nonceSize - 1: false, nonceSize: true, nonceSize + 1: false, 0: false} {
		for _, pair := range [][2]int{{size, nonceSize}, {nonceSize, size}} {
			if _, err := digest(make([]byte, pair[0]), make([]byte, pair[1])); (err == nil) != ok {
				t.Errorf("nonces of %v bytes: %v", pair, err)
			}
		}
	}
}

// TestS24_Replay: a signature is good for the nonces it was made over, in the
// attestation they were made for, and by the key of the certificate.
func TestS24_Replay(t *testing.T) {
	t.Parallel()
	root := newAuthority(t, "root", nil)
	v := newVerifier(t, VerifierConfig{}, root)
	for name, m := range map[string]machine{
		"ECDSA": newMachine(t, leaf("ec"), newECDSA(t, elliptic.P256()), root),
		"RSA":   newMachine(t, leaf("rsa"), rsaKey(t, 2048), root),
	} {
		// Overhear one attestation that succeeds.
		var questions, answers [][]byte
		sign := m.answer(t)
		attempt := node.Attempt{TrustDomain: td, Payload: payload(t, m.chain...), Challenge: func(ctx context.Context, q []byte) ([]byte, error) {
			a, err := sign(ctx, q)
			questions, answers = append(questions, q), append(answers, a)
			return a, err
		}}
		if _, err := v.Verify(t.Context(), attempt); err != nil {
			t.Fatal(err)
		}
		// The same answer again, to another question.
		attempt.Challenge = func(_ context.Context, q []byte) ([]byte, error) {
			questions = append(questions, q)
			return answers[0], nil
		}
		if _, err := v.Verify(t.Context(), attempt); !errors.Is(err, node.ErrRefused) {
			t.Errorf("%s: an old signature: %v", name, err)
		}
		if bytes.Equal(questions[0], questions[1]) {
			t.Errorf("%s: the server asked the same twice", name)
		}
		for what, spoil := range map[string]func(*response){
			"another nonce of the agent": func(r *response) { flip(nonceOf(r)) },
			"no nonce of the agent":      func(r *response) { *nonceOf(r) = nil },
			"a changed signature":        func(r *response) { flip(signatureOf(r)) },
			"no signature":               func(r *response) { *signatureOf(r) = nil },
			"the other kind":             func(r *response) { *r = otherKind(r) },
			"nothing":                    func(r *response) { *r = response{} },
		} {
			attempt.Challenge = func(ctx context.Context, q []byte) ([]byte, error) {
				a, err := sign(ctx, q)
				if err != nil {
					return nil, err
				}
				var r response
				if err := json.Unmarshal(a, &r); err != nil {
					return nil, err
				}
				spoil(&r)
				return json.Marshal(r)
			}
			if _, err := v.Verify(t.Context(), attempt); !errors.Is(err, node.ErrRefused) && !errors.Is(err, node.ErrMalformed) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
	}
}

func flip(b *[]byte) { (*b)[len(*b)/2] ^= 1 }

func nonceOf(r *response) *[]byte {
	if r.RSA != nil {
		return &r.RSA.Nonce
	}
	return &r.ECDSA.Nonce
}

func signatureOf(r *response) *[]byte {
	if r.RSA != nil {
		return &r.RSA.Signature
	}
	return &r.ECDSA.R
}

func otherKind(r *response) response {
	if r.RSA != nil {
		return response{ECDSA: &ecdsaSignature{Nonce: r.RSA.Nonce, R: []byte{1}, S: []byte{1}}}
	}
	return response{RSA: &rsaSignature{Nonce: r.ECDSA.Nonce, Signature: []byte{1}}}
}

// TestAgentSignsNoServersChoice: an agent signs a hash that its own nonce is
// part of, so that a false server cannot have it sign what it likes.
func TestAgentSignsNoServersChoice(t *testing.T) {
	t.Parallel()
	key := newECDSA(t, elliptic.P256())
	seen := make(map[string]bool)
	for range 4 {
		out, err := respond(&challenge{ECDSA: &nonce{make([]byte, nonceSize)}}, key)
		if err != nil {
			t.Fatal(err)
		}
		var r response
		if err := json.Unmarshal(out, &r); err != nil {
			t.Fatal(err)
		}
		if len(r.ECDSA.Nonce) != nonceSize || seen[string(r.ECDSA.Nonce)] {
			t.Errorf("nonce %x", r.ECDSA.Nonce)
		}
		seen[string(r.ECDSA.Nonce)] = true
	}
	for name, asked := range map[string]*challenge{
		"nothing":       {},
		"another kind":  {RSA: &nonce{make([]byte, nonceSize)}},
		"a short nonce": {ECDSA: &nonce{make([]byte, nonceSize-1)}},
		"a long nonce":  {ECDSA: &nonce{make([]byte, 1000)}},
	} {
		if _, err := respond(asked, key); !errors.Is(err, node.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWireFormat holds the JSON to what SPIRE's halves read and write.
func TestWireFormat(t *testing.T) {
	t.Parallel()
	n := make([]byte, 3)
	for want, v := range map[string]any{
		`{"certificates":["AAAA"]}`:                                                       evidence{Certificates: [][]byte{n}},
		`{"rsa_signature":{"nonce":"AAAA"},"ecdsa_signature":null}`:                       challenge{RSA: &nonce{n}},
		`{"rsa_signature":null,"ecdsa_signature":{"nonce":"AAAA"}}`:                       challenge{ECDSA: &nonce{n}},
		`{"rsa_signature":{"nonce":"AAAA","signature":"AAAA"},"ecdsa_signature":null}`:    response{RSA: &rsaSignature{n, n}},
		`{"rsa_signature":null,"ecdsa_signature":{"nonce":"AAAA","r":"AAAA","s":"AAAA"}}`: response{ECDSA: &ecdsaSignature{n, n, n}},
	} {
		if got := string(encode(t, v)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// TestSignaturesFromOutside checks signatures as another implementation makes
// them: RSA-PSS with the longest salt and with one as long as the hash, and
// ECDSA numbers with leading zeros.
func TestSignaturesFromOutside(t *testing.T) {
	t.Parallel()
	rsaSigner, ecSigner := rsaKey(t, 2048), newECDSA(t, elliptic.P256())
	own, theirs := bytes.Repeat([]byte{1}, nonceSize), bytes.Repeat([]byte{2}, nonceSize)
	sum, err := digest(own, theirs)
	if err != nil {
		t.Fatal(err)
	}
	for _, salt := range []int{rsa.PSSSaltLengthAuto, rsa.PSSSaltLengthEqualsHash} {
		signature, err := rsaSigner.Sign(rand.Reader, sum, &rsa.PSSOptions{SaltLength: salt, Hash: 5})
		if err != nil {
			t.Fatal(err)
		}
		if err := checkSignature(rsaSigner.Public(), own, &response{RSA: &rsaSignature{theirs, signature}}); err != nil {
			t.Errorf("salt length %d: %v", salt, err)
		}
	}
	der, err := ecdsa.SignASN1(rand.Reader, ecSigner, sum)
	if err != nil {
		t.Fatal(err)
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		t.Fatal(err)
	}
	padded := func(n *big.Int) []byte { return n.FillBytes(make([]byte, 40)) }
	if err := checkSignature(ecSigner.Public(), own, &response{ECDSA: &ecdsaSignature{theirs, padded(rs.R), padded(rs.S)}}); err != nil {
		t.Error(err)
	}
	huge := bytes.Repeat([]byte{0xff}, 20<<10)
	if err := checkSignature(ecSigner.Public(), own, &response{ECDSA: &ecdsaSignature{theirs, huge, huge}}); !errors.Is(err, node.ErrRefused) {
		t.Errorf("numbers of 20 KiB: %v", err)
	}
	if err := checkSignature(rsaSigner.Public(), own, &response{RSA: &rsaSignature{theirs, huge}}); !errors.Is(err, node.ErrRefused) {
		t.Errorf("a signature of 20 KiB: %v", err)
	}
}

// FuzzVerify has its chain in a file, the same in every run, so that what the
// fuzzer finds means the same in the next one: leaf, intermediate, root.
func FuzzVerify(f *testing.F) {
	const file = "testdata/fuzz-chain.pem"
	chain, err := loadCertificates(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(payload(f, chain[0], chain[1]), encode(f, response{ECDSA: &ecdsaSignature{Nonce: make([]byte, nonceSize), R: []byte{1}, S: []byte{1}}}))
	f.Add(payload(f, chain...), encode(f, response{RSA: &rsaSignature{Nonce: make([]byte, nonceSize), Signature: []byte{1}}}))
	f.Add(payload(f, chain[0], chain[1], chain[1], chain[2]), []byte(`null`))
	f.Add([]byte(`{"certificates":[]}`), []byte(`{}`))
	f.Add([]byte(`{"certificates":[""]}`), []byte(`{"ecdsa_signature":{"nonce":"","r":"","s":""}}`))
	v := newVerifier(f, VerifierConfig{}, &authority{cert: chain[2]})
	_, err = v.Verify(f.Context(), node.Attempt{TrustDomain: td, Payload: payload(f, chain...), Challenge: mute})
	if !errors.Is(err, errMute) {
		f.Fatalf("the chain in the file gets no challenge: %v", err)
	}
	f.Fuzz(func(t *testing.T, shown, answered []byte) {
		got, err := v.Verify(t.Context(), node.Attempt{TrustDomain: td, Payload: shown, Challenge: func(context.Context, []byte) ([]byte, error) {
			return answered, nil
		}})
		// The nonce is new each time, so that nothing can be right.
		if !errors.Is(err, node.ErrMalformed) && !errors.Is(err, node.ErrRefused) || !got.AgentID.IsZero() {
			t.Errorf("agent ID %q, error %v", got.AgentID, err)
		}
	})
}

// FuzzRespond is the agent's half: what a false server may send.
func FuzzRespond(f *testing.F) {
	f.Add([]byte(`{"ecdsa_signature":{"nonce":"AAAA"}}`))
	f.Add(encode(f, challenge{ECDSA: &nonce{make([]byte, nonceSize)}}))
	f.Add([]byte(`{"rsa_signature":{"nonce":"AAAA"}}`))
	f.Add([]byte(`null`))
	key := newECDSA(f, elliptic.P256())
	f.Fuzz(func(t *testing.T, question []byte) {
		asked, err := parse[challenge](question, "challenge")
		if err == nil {
			_, err = respond(asked, key)
		}
		if err != nil && !errors.Is(err, node.ErrMalformed) {
			t.Errorf("error %v", err)
		}
	})
}
