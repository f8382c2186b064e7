package etcdtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Certs are files of a test's own authority: for a member, and for a client
// whose common name is "root", which etcd takes for a user's name.
type Certs struct {
	CA                    string
	ServerCert, ServerKey string
	ClientCert, ClientKey string
}

// NewCerts makes an authority and its files, valid for an hour at 127.0.0.1.
func NewCerts(tb testing.TB) Certs {
	tb.Helper()
	dir := tb.TempDir()
	key := newKey(tb)
	ca := template("etcdtest authority")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	c := Certs{CA: filepath.Join(dir, "ca.pem")}
	der := sign(tb, ca, ca, key, key)
	write(tb, c.CA, "CERTIFICATE", der)
	issuer, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	leaf := func(name string, usage x509.ExtKeyUsage) (certFile, keyFile string) {
		own := newKey(tb)
		cert := template("root")
		cert.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		cert.ExtKeyUsage = []x509.ExtKeyUsage{usage}
		certFile, keyFile = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")
		write(tb, certFile, "CERTIFICATE", sign(tb, cert, issuer, own, key))
		pkcs8, err := x509.MarshalPKCS8PrivateKey(own)
		if err != nil {
			tb.Fatal(err)
		}
		write(tb, keyFile, "PRIVATE KEY", pkcs8)
		return certFile, keyFile
	}
	c.ServerCert, c.ServerKey = leaf("server", x509.ExtKeyUsageServerAuth)
	c.ClientCert, c.ClientKey = leaf("client", x509.ExtKeyUsageClientAuth)
	return c
}

func template(name string) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62)) // Never fails.
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func sign(tb testing.TB, cert, issuer *x509.Certificate, own, key *ecdsa.PrivateKey) []byte {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, cert, issuer, own.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

func write(tb testing.TB, path, kind string, der []byte) {
	tb.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		tb.Fatal(err)
	}
}
