package telemetry

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCheckPorts(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		first, second string // hosts
		clash         bool
	}{
		"the same":               {"10.0.0.1", "10.0.0.1", true},
		"two":                    {"10.0.0.1", "10.0.0.2", false},
		"all and one":            {"0.0.0.0", "10.0.0.1", true},
		"one and all":            {"10.0.0.1", "[::]", true},
		"all of IPv4 and IPv6":   {"0.0.0.0", "::1", false},
		"all of IPv4 and a name": {"0.0.0.0", "a.test", false},
		"nothing said":           {"", "localhost", true},
		"localhost by name":      {"127.0.0.1", "LocalHost", true},
		"both protocols' one":    {"127.0.0.1", "::1", false},
		"an IPv4 in an IPv6":     {"10.0.0.1", "::ffff:10.0.0.1", true},
		"a name and a number":    {"a.test", "10.0.0.1", false},
		"a name in other case":   {"a.test", "A.test", true},
	} {
		var got []string
		report := func(key, format string, args ...any) { got = append(got, key+": "+fmt.Sprintf(format, args...)) }
		CheckPorts(report, Endpoint{}, Endpoint{test.first, "9", "a"}, Endpoint{"x", "10", "b"}, Endpoint{test.second, "9", "c"},
			Endpoint{test.first, "0", "d"}, Endpoint{test.first, "0", "e"}, Endpoint{})
		var want []string
		if test.clash {
			want = []string{"c: port 9 is that of a too; choose another"}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
