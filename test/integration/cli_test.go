package integration

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// What operators and their scripts type, and what they read: testdata/script has
// a script for each noun, played against a server and an agent of its own. With
// -update the scripts take over what the programs print.
func TestTheCommandLine(t *testing.T) {
	t.Parallel()
	scripts, err := filepath.Glob(filepath.Join("testdata", "script", "*.txtar"))
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts found: %v", err)
	}
	for _, script := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(script), ".txtar"), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "cli")
			s := w.startServer(serverOptions{})
			a := w.startAgent(s, "a", agentOptions{})
			testscript.Run(t, testscript.Params{
				Files:              []string{script},
				RequireUniqueNames: true,
				UpdateScripts:      *update,
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"redact": redact, "exit1": exitWith(1), "exit127": exitWith(127), "eventually": tryExec,
				},
				Setup: func(env *testscript.Env) error {
					env.Setenv("PATH", w.bin.dir+string(os.PathListSeparator)+env.Getenv("PATH"))
					env.Setenv("SPIRE_SERVER_PRIVATE_SOCKET", s.socket())
					env.Setenv("SPIRE_AGENT_PUBLIC_SOCKET", a.socket())
					env.Setenv("SERVER_SOCKET", s.socket())
					env.Setenv("SERVER_CONFIG", s.config())
					env.Setenv("AGENT_CONFIG", a.config())
					env.Setenv("AGENT", a.id().String())
					env.Setenv("TOKEN", a.token)
					env.Setenv("SELF", self())
					return nil
				},
			})
		})
	}
}

// redactions are what differs from run to run.
var redactions = []struct {
	pattern *regexp.Regexp
	text    string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "<UUID>"},
	{regexp.MustCompile(`eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+`), "<JWT>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4} [A-Z0-9+-]+`), "<TIME>"},
	{regexp.MustCompile(`"\d{10}"`), `"<SECONDS>"`},
	{regexp.MustCompile(`\b\d{30,50}\b`), "<SERIAL>"},
	{regexp.MustCompile(`after \d[\d.]*[mµn]?s`), "after <DURATION>"},
	{regexp.MustCompile(`"(kid|x|y)":( ?)"[A-Za-z0-9_-]+"`), `"$1":$2"<$1>"`},
	{regexp.MustCompile(`"key_id":"[A-Za-z0-9_-]+"`), `"key_id":"<kid>"`},
	{regexp.MustCompile(`Agent version     : \S+`), "Agent version     : <VERSION>"},
	{regexp.MustCompile(`"agent_version":"[^"]*"`), `"agent_version":"<VERSION>"`},
	{regexp.MustCompile(`"[A-Za-z0-9+/]{40,}={0,2}"`), `"<BYTES>"`},
	{regexp.MustCompile(`(Authority ID: |"authority_id":")[<>\w-]+`), "$1<ID>"},
	{regexp.MustCompile(`(Uptime: +)\w+`), "$1<DURATION>"},
	{regexp.MustCompile(`"uptime":\d+`), `"uptime":<SECONDS>`},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`), "<TIME>"},
}

// redact writes what differs from run to run in other words: redact stdout name.
func redact(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: redact file name")
	}
	text := ts.ReadFile(args[0])
	for _, r := range redactions {
		text = r.pattern.ReplaceAllString(text, r.text)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o600))
}

// tryExec runs a program again and again until it succeeds: eventually program
// args. It is for what has to arrive first.
func tryExec(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: eventually program [args]")
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(pollPause) {
		err := ts.Exec(args[0], args[1:]...)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%q ended with %v for %v", args, err, patience)
		}
	}
}

// exitWith runs a program that has to end with the code: exit1 program args.
func exitWith(code int) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) == 0 {
			ts.Fatalf("usage: exit%d program [args]", code)
		}
		err := ts.Exec(args[0], args[1:]...)
		if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != code {
			ts.Fatalf("%q ended with %v, want exit code %d", args, err, code)
		}
	}
}
