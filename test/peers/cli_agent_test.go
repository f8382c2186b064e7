package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// apiSteps are command lines of spire-agent, with $SOCKET its Workload API's
// socket, $ADMIN its admin socket, $CONF its configuration, $JWT a token for
// the audience "mine", $DIR an empty folder.
var apiSteps = []step{
	{args: "api fetch -socketPath $SOCKET"},
	{args: "api fetch x509 -socketPath $SOCKET"},
	{args: "api fetch x509 --socketPath=$SOCKET -output json"},
	{args: "api fetch x509 -socketPath $SOCKET -silent"},
	{args: "api fetch x509 -socketPath $SOCKET -silent -output json"},
	{args: "api fetch x509 -socketPath $SOCKET -write $DIR"},
	{args: "api fetch x509 -socketPath $SOCKET -write $DIR -silent"},
	{args: "api fetch x509 -socketPath $SOCKET -write $DIR -output json"},
	{args: "api fetch x509 -socketPath $SOCKET -write $DIR/none", differs: "we say which file could not be written beside why"},
	{args: "api fetch x509 -socketPath $SOCKET -timeout 0"},
	{args: "api fetch x509 -socketPath $SOCKET -timeout x", usage: true},
	{args: "api fetch x509 -socketPath $SOCKET -output x", usage: true},
	{args: "api fetch x509 -socketPath $SOCKET -nothing", usage: true},
	{args: "api fetch x509 -socketPath /none/api.sock -timeout 2s"},
	{args: "api fetch jwt -socketPath $SOCKET"},
	{args: "api fetch jwt -socketPath $SOCKET -audience mine"},
	{args: "api fetch jwt -socketPath $SOCKET -audience mine,yours -output json"},
	{args: "api fetch jwt -socketPath $SOCKET -audience mine -format json"},
	{args: "api fetch jwt -socketPath $SOCKET -audience mine -audience yours"},
	{args: "api fetch jwt -socketPath $SOCKET -audience mine -spiffeID spiffe://example.org/second"},
	{args: "api fetch jwt -socketPath $SOCKET -audience mine -spiffeID spiffe://example.org/none"},
	{args: "api validate jwt -socketPath $SOCKET"},
	{args: "api validate jwt -socketPath $SOCKET -audience mine"},
	{args: "api validate jwt -socketPath $SOCKET -audience mine -svid $JWT"},
	{args: "api validate jwt -socketPath $SOCKET -audience mine -svid $JWT -output json"},
	{args: "api watch -socketPath $SOCKET -nothing", usage: true},
	{args: "api fetch -h", usage: true},
	{args: "api fetch jwt -instance a -socketPath $SOCKET -audience mine", differs: "-instance without a template is refused in one sentence, for both programs"},
	{args: "api fetch x509 -instance a", env: []string{"SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE=$TEMPLATE"}},
	{args: "api fetch x509", env: []string{"SPIRE_AGENT_PUBLIC_SOCKET=$SOCKET"}},
}

// nodeSteps are those that are not about the Workload API.
var nodeSteps = []step{
	{args: "healthcheck -socketPath $SOCKET"},
	{args: "healthcheck -socketPath $SOCKET -verbose -shallow"},
	{args: "healthcheck -socketPath /none/api.sock"},
	{args: "healthcheck -socketPath /none/api.sock -verbose"},
	{args: "healthcheck -nothing", usage: true},
	{args: "debug getinfo -socketPath $ADMIN"},
	{args: "debug getinfo -socketPath $ADMIN -output json"},
	{args: "logger get -socketPath $ADMIN"},
	{args: "logger set -socketPath $ADMIN"},
	{args: "logger set -socketPath $ADMIN -level loud"},
	{args: "logger set -socketPath $ADMIN -level WARN"},
	{args: "logger set -socketPath $ADMIN -level warning -output json"},
	{args: "logger get -socketPath $ADMIN -output json"},
	{args: "logger reset -socketPath $ADMIN"},
	{args: "logger get -socketPath $ADMIN -nothing", usage: true},
	{args: "logger get -socketPath /none/admin.sock"},
	{args: "validate -config $CONF"},
	{args: "validate -config /none/agent.conf", differs: "we say that the file could not be read; SPIRE suggests a flag"},
	{args: "nothing", usage: true},
	{args: "api nothing", usage: true},
	{args: "api fetch nothing", usage: true, differs: "a word that is no command is refused; SPIRE passes it over"},
	{args: "-version", differs: "the version is ours"},
	{args: "-h", usage: true},
	{args: "", usage: true},
	{args: "api", usage: true},
	{args: "logger", usage: true},
	{args: "debug", usage: true},
}

// TestSameAgentCommandLine plays one script by SPIRE's spire-agent and by ours
// called by that name, in front of the same agent: ours, and SPIRE's. Every byte
// of both outputs, the exit code and the files written have to be the same.
func TestSameAgentCommandLine(t *testing.T) {
	t.Parallel()
	foreign, own := spire(t), ours(t)
	for _, bin := range []programs{own, foreign} {
		t.Run("agent of "+bin.name, func(t *testing.T) {
			t.Parallel()
			n := startSide(t, bin).startNode(bin)
			token := n.twoIdentities(t)
			for i, s := range slices.Concat(apiSteps, nodeSteps) {
				want, got := n.play(t, foreign.agent(), token, s), n.play(t, own.agent(), token, s)
				t.Run(fmt.Sprintf("%03d %s", i, s.args), func(t *testing.T) {
					diff := cmp.Diff(want, got, cmp.AllowUnexported(output{}, written{}))
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

// TestAgentCommandLineIsAsRecorded plays the script by our command line alone.
// What it prints is recorded, and TestSameAgentCommandLine holds it against
// SPIRE's.
func TestAgentCommandLineIsAsRecorded(t *testing.T) {
	t.Parallel()
	own := ours(t)
	n := startSide(t, own).startNode(own)
	token := n.twoIdentities(t)
	var got strings.Builder
	for _, s := range slices.Concat(apiSteps, nodeSteps) {
		out := n.play(t, own.agent(), token, s)
		plain := func(text string) string {
			text = strings.NewReplacer(token, "<JWT>", n.dir, "<NODE>").Replace(text)
			return withoutMoments(seconds10.ReplaceAllString(jwkValue.ReplaceAllString(text, `"$1":"…"`), "<SECONDS>"))
		}
		out.stdout, out.stderr = plain(out.stdout), plain(out.stderr)
		got.WriteString(recorded("spire-agent", s, out.output))
		for _, name := range slices.Sorted(maps.Keys(out.files)) {
			mode, text, _ := strings.Cut(out.files[name], "\n")
			fmt.Fprintf(&got, "%s %s\n%s\n", mode, name, plain(text))
		}
	}
	holdGolden(t, "cli_agent.golden", got.String())
}

var (
	seconds10 = regexp.MustCompile(`\b1[0-9]{9}\b`)
	jwkValue  = regexp.MustCompile(`"(kid|x|y)":"[^"]+"`)
)

// twoIdentities registers two, waits until the agent has them, and returns a
// token of the first.
func (n *node) twoIdentities(t *testing.T) string {
	t.Helper()
	first, second := n.mine("/first"), n.mine("/second")
	first.Id, second.Id, second.Hint = "1-first", "2-second", "internal"
	n.create(t, first)
	n.create(t, second)
	fetch := func() output {
		return runCommand(t, n.agent.agent(), "api", "fetch", "jwt", "-audience", "mine", "-socketPath", n.socket())
	}
	eventually(t, "both identities are there", func() error { return twoTokens(fetch()) })
	return regexp.MustCompile(`eyJ\S+`).FindString(fetch().stdout)
}

var errOneToken = errors.New("not two tokens")

func twoTokens(out output) error {
	if strings.Count(out.stdout, "token(") != 2 {
		return fmt.Errorf("%w: %s%s", errOneToken, out.stdout, out.stderr)
	}
	return nil
}

// written is what a command has left: its outputs and files.
type written struct {
	output
	files map[string]string // name → mode and text
}

var (
	took   = regexp.MustCompile(`after [0-9.]+(ns|µs|ms|s)`)
	uptime = regexp.MustCompile(`(Uptime: *|"uptime":)[0-9ms.]+`)
	synced = regexp.MustCompile(`(Last Sync Success: *|"last_sync_success":)\S+?(,|\n)`)
)

func (n *node) play(t *testing.T, file, token string, s step) written {
	t.Helper()
	dir := t.TempDir()
	vars := strings.NewReplacer("$SOCKET", n.socket(), "$ADMIN", n.adminSocket(), "$CONF", n.dir+".fresh.conf", "$JWT", token, "$DIR", dir,
		"$TEMPLATE", n.dir+"/public/%ipi.sock")
	cmd := exec.CommandContext(bounded(t), file, words(vars.Replace(s.args))...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Dir, cmd.Env = &stdout, &stderr, dir, environment()
	for _, e := range s.env {
		cmd.Env = append(cmd.Env, vars.Replace(e))
	}
	if err := cmd.Run(); err != nil && (!errors.As(err, new(*exec.ExitError)) || errors.Is(err, context.DeadlineExceeded)) {
		t.Fatalf("%s %s: %v", file, s.args, err)
	}
	plain := func(b *bytes.Buffer) string {
		text := strings.ReplaceAll(b.String(), dir, "<DIR>")
		text = synced.ReplaceAllString(uptime.ReplaceAllString(text, "$1…"), "$1…$2")
		text = strings.ReplaceAll(strings.ReplaceAll(text, `, "`, `,"`), `": `, `":`) // protojson has spaces or not, by the build
		return took.ReplaceAllString(text, "after …")
	}
	out := written{output: output{plain(&stdout), plain(&stderr), cmd.ProcessState.ExitCode()}, files: map[string]string{}}
	if s.usage {
		first, rest, _ := strings.Cut(out.stderr, "\n")
		if strings.HasSuffix(s.args, "-h") || strings.HasPrefix(first, "Usage") || first == "This command is accessed by using one of the subcommands below." {
			first = "usage"
		}
		out.stderr = fmt.Sprintf("%s and more: %t", first, rest != "")
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f.Name()))
		info, statErr := f.Info()
		if err := errors.Join(err, statErr); err != nil {
			t.Fatal(err)
		}
		out.files[f.Name()] = fmt.Sprintf("%v\n%s", info.Mode(), data)
	}
	return out
}
