package svid_test

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func loadKey(t *testing.T, name string) crypto.Signer {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatalf("%s is not PEM", name)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(crypto.Signer)
}

// describe writes a certificate down field by field, each extension as its OID
// and value.
func describe(c *x509.Certificate) string {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		fmt.Fprintf(&b, "%-20s %s\n", label, fmt.Sprintf(format, args...))
	}
	line("Version", "%d", c.Version)
	line("Serial", "%x", c.SerialNumber)
	line("Signature", "%s", c.SignatureAlgorithm)
	line("Issuer", "%s", c.Issuer)
	line("NotBefore", "%s", c.NotBefore.Format(time.RFC3339))
	line("NotAfter", "%s", c.NotAfter.Format(time.RFC3339))
	line("Subject", "%s", c.Subject)
	line("Public key", "%s %x", c.PublicKeyAlgorithm, c.RawSubjectPublicKeyInfo)
	for _, u := range c.URIs {
		line("URI", "%s", u)
	}
	for _, d := range c.DNSNames {
		line("DNS", "%s", d)
	}
	for _, e := range c.Extensions {
		critical := ""
		if e.Critical {
			critical = "critical "
		}
		line("Extension", "%s %s%x", e.Id, critical, e.Value)
	}
	return b.String()
}
