package keys_test

import (
	"fmt"
	"testing"

	"github.com/credence-id/credence/pkg/keys"
)

func TestParseType(t *testing.T) {
	t.Parallel()
	for _, want := range []keys.Type{keys.ECP256, keys.ECP384, keys.RSA2048, keys.RSA4096} {
		if got, err := keys.ParseType(want.String()); err != nil || got != want {
			t.Errorf("ParseType(%q) = %v, %v", want, got, err)
		}
	}
	for _, bad := range []string{"", "ec", "ec-p521", "rsa-1024", "ec-p256 "} {
		if got, err := keys.ParseType(bad); err == nil {
			t.Errorf("ParseType(%q) = %v", bad, got)
		}
	}
}

// TestOpaque: a key that reaches a log by mistake is not in it.
func TestOpaque(t *testing.T) {
	t.Parallel()
	key, err := keys.New(keys.ECP256)
	if err != nil {
		t.Fatal(err)
	}
	hidden := keys.Opaque(key)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(verb, hidden); got != "private key" {
			t.Errorf("%s prints %q", verb, got)
		}
	}
}
