package peers

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "record in testdata what our command line prints")

// cliSteps are the whole script, in an order.
var cliSteps = slices.Concat(entrySteps, agentSteps, mintSteps, flagSteps, socketSteps, configSteps)

// TestCommandLineIsAsRecorded plays the script by our command line alone. What it
// prints is recorded, and TestSameCommandLine holds it against SPIRE's.
func TestCommandLineIsAsRecorded(t *testing.T) {
	t.Parallel()
	own := ours(t)
	term := newTerminal(t, own, own)
	var got strings.Builder
	for _, s := range cliSteps {
		got.WriteString(recorded("spire-server", s, term.play(t, s)))
	}
	holdGolden(t, "cli.golden", got.String())
}

// recorded is a step and what it printed.
func recorded(program string, s step, out output) string {
	var got strings.Builder
	fmt.Fprintf(&got, "$ %s %s\n", program, s.args)
	if s.stdin != "" {
		fmt.Fprintf(&got, "with stdin: %q\n", s.stdin)
	}
	if len(s.env) > 0 {
		fmt.Fprintf(&got, "with environment: %s\n", strings.Join(s.env, " "))
	}
	fmt.Fprintf(&got, "exit code %d\n", out.code)
	for _, stream := range []struct{ name, text string }{{"stdout", out.stdout}, {"stderr", out.stderr}} {
		if stream.text != "" {
			fmt.Fprintf(&got, "%s:\n%s", stream.name, stream.text)
			if !strings.HasSuffix(stream.text, "\n") {
				got.WriteString(" (no end of line)\n")
			}
		}
	}
	got.WriteString("\n")
	return got.String()
}

// holdGolden compares with the file in testdata, or writes it.
func holdGolden(t *testing.T, name, got string) {
	t.Helper()
	golden := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("the command line prints something else (-recorded +now); -update records it:\n%s", diff)
	}
}

// TestDifferencesAreTold holds docs/cli.md to the reasons in the script.
func TestDifferencesAreTold(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "cli.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range cliSteps {
		if s.differs != "" && !strings.Contains(string(text), s.differs) {
			t.Errorf("docs/cli.md does not say of %q: %s", s.args, s.differs)
		}
	}
}
