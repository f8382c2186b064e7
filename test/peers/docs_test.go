package peers

import (
	"os"
	"regexp"
	"testing"
)

// row is one of the table of calls.
var row = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (.+) \\|$")

// TestDifferencesAreDocumented: the table in docs is the one the tests hold.
func TestDifferencesAreDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/spire-differences.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		documented[m[1]] = m[2]
	}
	for name, reason := range differences {
		if documented[name] != reason {
			t.Errorf("docs/spire-differences.md says of %q: %q, differences_test.go: %q", name, documented[name], reason)
		}
	}
	for name := range documented {
		if differences[name] == "" {
			t.Errorf("docs/spire-differences.md has %q, which is not in differences_test.go", name)
		}
	}
}
