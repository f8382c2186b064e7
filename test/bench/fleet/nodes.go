package fleet

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // x509pop names agents by it
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/credence-id/credence/pkg/attest/node/x509pop"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// Nodes is what the machines of the fleet prove themselves with: x509pop
// certificates of as many authorities as there are groups of machines. It is
// kept in a folder, so that the next run has the same agents.
type Nodes struct {
	dir    string
	groups []*authority
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// LoadNodes reads the authorities in the folder, and makes those of the first n
// that are missing.
func LoadNodes(dir string, n int) (*Nodes, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	out := &Nodes{dir: dir}
	for i := range n {
		a, err := loadAuthority(out.authorityFile(i), i)
		if err != nil {
			return nil, fmt.Errorf("node authority %d: %w", i, err)
		}
		out.groups = append(out.groups, a)
	}
	return out, nil
}

func (n *Nodes) authorityFile(i int) string {
	return filepath.Join(n.dir, fmt.Sprintf("authority-%d.pem", i))
}

// AuthorityFiles are for ca_bundle_paths of the server's x509pop.
func (n *Nodes) AuthorityFiles() []string {
	out := make([]string, len(n.groups))
	for i := range out {
		out[i] = n.authorityFile(i)
	}
	return out
}

// Selectors are, for each group, what its machines have in common and no
// other's: what a node alias asks for.
func (n *Nodes) Selectors() [][]*types.Selector {
	out := make([][]*types.Selector, len(n.groups))
	for i, a := range n.groups {
		out[i] = []*types.Selector{{Type: x509pop.Name, Value: "ca:fingerprint:" + fingerprint(a.cert.Raw)}}
	}
	return out
}

// node makes sure that machine i has its certificate and returns the file and
// the SPIFFE ID it gets. Machines go to the groups in turn.
func (n *Nodes) node(td spiffeid.TrustDomain, i int) (file string, id spiffeid.ID, err error) {
	file = filepath.Join(n.dir, fmt.Sprintf("node-%d-of-%d-groups.pem", i, len(n.groups)))
	cert, _, err := readPair(file)
	if errors.Is(err, fs.ErrNotExist) {
		ca := n.groups[i%len(n.groups)]
		cert, _, err = makePair(file, fmt.Sprintf("node-%d", i), false, ca)
	}
	if err != nil {
		return "", spiffeid.ID{}, fmt.Errorf("certificate of node %d: %w", i, err)
	}
	id, err = spiffeid.FromPath(td, "/spire/agent/"+x509pop.Name+"/"+fingerprint(cert.Raw))
	return file, id, err
}

func fingerprint(der []byte) string {
	sum := sha1.Sum(der) //nolint:gosec // as x509pop does
	return hex.EncodeToString(sum[:])
}

func loadAuthority(file string, i int) (*authority, error) {
	cert, key, err := readPair(file)
	if errors.Is(err, fs.ErrNotExist) {
		cert, key, err = makePair(file, fmt.Sprintf("machines of group %d", i), true, nil)
	}
	return &authority{cert: cert, key: key}, err
}

// makePair writes a certificate and its key to one file; ca is nil for one that
// signs itself.
func makePair(file, name string, isCA bool, ca *authority) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true, IsCA: isCA,
	}
	if isCA {
		template.KeyUsage = x509.KeyUsageCertSign
	}
	if ca == nil {
		ca = &authority{cert: template, key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})...)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

func readPair(file string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	first, rest := pem.Decode(text)
	second, _ := pem.Decode(rest)
	if first == nil || second == nil {
		return nil, nil, fmt.Errorf("%s: want a certificate and a key", file)
	}
	cert, err := x509.ParseCertificate(first.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	key, err := x509.ParsePKCS8PrivateKey(second.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	k, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, nil, fmt.Errorf("%s: a key of type %T", file, key)
	}
	return cert, k, nil
}
