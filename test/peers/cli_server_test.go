package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// step is one command line of the script that both command lines play.
type step struct {
	// args are split at spaces, but for what is between single quotes. $A1 to $A3
	// are agents with a join token, $P1 is one with a certificate, $DIR is a folder, $SOCKET the server's socket, $CONF the
	// configuration of another server.
	args  string
	stdin string
	env   []string // besides the socket's
	// attest says that one more agent with a certificate attests first.
	attest bool
	// usage says that SPIRE prints its usage text: only the first line of stderr
	// is compared, and that there is more.
	usage bool
	// differs is why the outputs are not the same. It is also in docs/cli.md.
	differs string
}

// TestSameCommandLine plays one script twice against the same kind of server: by
// SPIRE's spire-server and by ours called by that name. Every byte of both
// outputs and the exit code have to be the same, but for what is random or of
// the moment; in front of our server, and in front of SPIRE's.
func TestSameCommandLine(t *testing.T) {
	t.Parallel()
	foreign := spire(t)
	own := ours(t)
	for _, server := range []programs{own, foreign} {
		t.Run("server of "+server.name, func(t *testing.T) {
			t.Parallel()
			theirs, mine := newTerminal(t, foreign, server), newTerminal(t, own, server)
			for i, s := range cliSteps {
				want, got := theirs.play(t, s), mine.play(t, s)
				t.Run(fmt.Sprintf("%03d %s", i, s.args), func(t *testing.T) {
					diff := cmp.Diff(want, got, cmp.AllowUnexported(output{}))
					switch {
					case diff != "" && s.differs == "":
						t.Errorf("SPIRE's command line says -, ours +:\n%s", diff)
					case diff == "" && s.differs != "":
						t.Errorf("the outputs are the same now; take away: %s", s.differs)
					}
				})
			}
		})
	}
}

// terminal is one command line in front of one server.
type terminal struct {
	*side
	program string
	vars    *strings.Replacer
	nodes   *nodeCA
}

func newTerminal(t *testing.T, commands, server programs) *terminal {
	t.Helper()
	s := newSide(t, server)
	term := &terminal{side: s, program: commands.server(), nodes: newNodeCA(t, s)}
	s.start()
	vars := []string{"$DIR", s.path("out"), "$SOCKET", s.socket(), "$CONF", s.path("both.conf"), "$P1", term.attestByCertificate(t)}
	for i := range 3 {
		vars = append(vars, fmt.Sprintf("$A%d", i+1), term.attestByToken(t))
	}
	term.vars = strings.NewReplacer(vars...)
	if err := os.MkdirAll(s.path("out"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.write("both.conf", fmt.Sprintf(`
server {
	trust_domain = "both.test"
	data_dir = %q
}
plugins {
	DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "${STORE}" } }
	KeyManager "memory" { plugin_data {} }
	NodeAttestor "join_token" { plugin_data {} }
}
`, s.path("out")))
	return term
}

// play runs a step, and returns what it printed without what differs from run to
// run.
func (m *terminal) play(t *testing.T, s step) output {
	t.Helper()
	if s.attest {
		m.attestByCertificate(t)
	}
	cmd := exec.CommandContext(bounded(t), m.program, words(m.vars.Replace(s.args))...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(m.vars.Replace(s.stdin)), &stdout, &stderr
	cmd.Dir = m.dir
	cmd.Env = append(environment(), "SPIRE_SERVER_PRIVATE_SOCKET="+m.socket())
	for _, e := range s.env {
		cmd.Env = append(cmd.Env, m.vars.Replace(e))
	}
	if err := cmd.Run(); err != nil && (!errors.As(err, new(*exec.ExitError)) || errors.Is(err, context.DeadlineExceeded)) {
		t.Fatalf("%s %s: %v", m.program, s.args, err)
	}
	out := output{m.plainText(stdout.String()), m.plainText(stderr.String()), cmd.ProcessState.ExitCode()}
	if s.usage {
		first, rest, _ := strings.Cut(out.stderr, "\n")
		out.stderr = fmt.Sprintf("%s\nand usage: %t", first, rest != "")
	}
	return out
}

// words splits a command line at spaces outside of single quotes.
func words(line string) []string {
	var out []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			out = append(out, part)
		} else {
			out = append(out, strings.Fields(part)...)
		}
	}
	return out
}

// moments are what differs from run to run.
var moments = []struct {
	pattern *regexp.Regexp
	text    string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "<UUID>"},
	{regexp.MustCompile(`eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+`), "<JWT>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4} [A-Z0-9+-]+`), "<TIME>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`), "<TIME>"},
	{regexp.MustCompile(`"\d{10}"`), `"<SECONDS>"`},
	{regexp.MustCompile(`\b\d{30,50}\b`), "<SERIAL>"},
	{regexp.MustCompile(`\b[0-9a-f]{40}\b`), "<SHA1>"},
	{regexp.MustCompile(`(?s)-----BEGIN ([A-Z ]+)-----.*?-----END`), "-----BEGIN $1----- … -----END"},
	{regexp.MustCompile(`"[A-Za-z0-9+/]{40,}={0,2}"`), `"<BYTES>"`},
	{regexp.MustCompile(`\.tmp\d+`), ".tmp<N>"},
}

func (m *terminal) plainText(text string) string {
	return withoutMoments(strings.ReplaceAll(text, m.dir, "<DIR>"))
}

func withoutMoments(text string) string {
	for _, r := range moments {
		text = r.pattern.ReplaceAllString(text, r.text)
	}
	return text
}
