package configtest

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// commented is a line of a shipped configuration that is a key, switched off: #
// and no space.
var commented = regexp.MustCompile(`(?m)^(\s*)#(\S)`)

// EveryKey reads a shipped configuration that is to have every key, on or
// switched off. It reports those of keys (paths, as config.Keys returns them)
// that the file has not, and returns its text with every key switched on.
func EveryKey(t testing.TB, path string, keys []string) (on string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	on = commented.ReplaceAllString(string(data), "$1$2")
	for _, key := range keys {
		last := key[strings.LastIndex(key, ".")+1:]
		if last != "*" && !regexp.MustCompile(`(?m)^[^#]*\b`+last+`("| =| \{| ")`).MatchString(on) {
			t.Errorf("%s does not have %s", path, key)
		}
	}
	return on
}
