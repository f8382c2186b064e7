package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/credence-id/credence/pkg/keys/diskkey"
)

// FuzzParseBundle takes the file that trust_bundle_path names, in both formats.
func FuzzParseBundle(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), true)
	f.Add([]byte(`{"keys":[{"use":"x509-svid","kty":"EC","x5c":["AAAA"]}],"spiffe_sequence":1}`), false)
	f.Fuzz(func(t *testing.T, data []byte, pem bool) {
		format := formatSPIFFE
		if pem {
			format = formatPEM
		}
		b, err := parseBundle(testTD, data, format)
		if err == nil && b.TrustDomain() != testTD {
			t.Errorf("a bundle of %s", b.TrustDomain())
		}
	})
}

// FuzzLoadIdentity takes the file in which the agent keeps its own SVID.
func FuzzLoadIdentity(f *testing.F) {
	dir := f.TempDir()
	km, err := diskkey.New(filepath.Join(dir, "keys.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"certificates":["MIIB"],"reattestable":true}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "svid.json")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		id := &identity{td: testTD, keys: km, path: path}
		if ok, _ := id.load(t.Context()); ok || id.current.Load() != nil { // the keys are others'
			t.Error("took up an SVID whose key it has not")
		}
	})
}
