package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// program is a small command tree; its verbs print what they were given.
func program() *cobra.Command {
	root := &cobra.Command{Use: "credence-server", Version: "v1.2.3"}
	entry := &cobra.Command{Use: "entry", Short: "entries"}
	create := &cobra.Command{Use: "create", Args: cobra.ArbitraryArgs}
	id := create.Flags().String("spiffeID", "", "SPIFFE ID")
	selectors := create.Flags().StringArray("selector", nil, "selector")
	admin := create.Flags().Bool("admin", false, "admin")
	create.Flags().Int("ttl", 0, "lifetime")
	create.Flags().Duration("for", 0, "age")
	OutputFlag(create.Flags())
	create.RunE = func(cmd *cobra.Command, args []string) error {
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "id=%s selectors=%q admin=%v args=%q\n", *id, *selectors, *admin, args)
		return err
	}
	fail := &cobra.Command{Use: "fail"}
	kind := fail.Flags().String("kind", "", "what to fail with")
	fail.RunE = func(*cobra.Command, []string) error {
		return map[string]error{
			"plain":    errors.New("it broke"),
			"hint":     fmt.Errorf("doing it: %w", Hint(errors.New("it broke"), "mend it")),
			"status":   fmt.Errorf("deleting entry: %w", status.Error(codes.NotFound, "no such entry")),
			"reported": fmt.Errorf("x: %w", ErrReported),
		}[*kind]
	}
	entry.AddCommand(create)
	root.AddCommand(entry, fail)
	return root
}

func TestRun(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name           string
		args           []string
		exit           int
		stdout, stderr string // exact, or with "…" at the end: a prefix
	}{
		{"one dash", []string{"entry", "create", "-spiffeID", "x"}, 0, "id=x selectors=[] admin=false args=[]\n", ""},
		{"one dash and equals sign", []string{"entry", "create", "-spiffeID=x=y"}, 0, "id=x=y selectors=[] admin=false args=[]\n", ""},
		{"two dashes", []string{"entry", "create", "--spiffeID", "x"}, 0, "id=x selectors=[] admin=false args=[]\n", ""},
		{"repeated", []string{"entry", "create", "-selector", "unix:uid:0", "-selector=a"}, 0, "id= selectors=[\"unix:uid:0\" \"a\"] admin=false args=[]\n", ""},
		{"value that begins with a dash", []string{"entry", "create", "-spiffeID", "-10s", "-selector", "-spiffeID"}, 0, "id=-10s selectors=[\"-spiffeID\"] admin=false args=[]\n", ""},
		{"value that is two dashes", []string{"entry", "create", "-spiffeID", "--", "-admin"}, 0, "id=-- selectors=[] admin=true args=[]\n", ""},
		{"boolean takes no value", []string{"entry", "create", "-admin", "rest"}, 0, "id= selectors=[] admin=true args=[\"rest\"]\n", ""},
		{"boolean with equals sign", []string{"entry", "create", "-admin=false"}, 0, "id= selectors=[] admin=false args=[]\n", ""},
		{"after two dashes nothing is a flag", []string{"entry", "create", "--", "-admin"}, 0, "id= selectors=[] admin=false args=[\"-admin\"]\n", ""},
		{"one dash alone is a word", []string{"entry", "create", "-", "-admin"}, 0, "id= selectors=[] admin=true args=[\"-\"]\n", ""},
		{"value of a letter", []string{"entry", "create", "-o", "create", "-spiffeID", "x"}, 1, "", "Error: invalid argument \"create\" for \"-o, --output\" flag…"},
		{"command name as a value", []string{"entry", "create", "-spiffeID", "create"}, 0, "id=create selectors=[] admin=false args=[]\n", ""},

		{"help", []string{"-h"}, 0, "Usage:\n…", ""},
		{"help of a group", []string{"entry", "-help"}, 0, "entries\n…", ""},
		{"help of a verb", []string{"entry", "create", "--help"}, 0, "Usage:\n  credence-server entry create…", ""},
		{"version", []string{"-version"}, 0, "credence-server version v1.2.3\n", ""},

		{"unknown command", []string{"entri"}, 127, "", "Error: \"entri\" is not a command of credence-server\nhint: did you mean credence-server entry?\n"},
		{"unknown command of a group", []string{"entry", "zap"}, 127, "", "Error: \"zap\" is not a command of credence-server entry\nhint: credence-server entry -h lists the commands\n"},
		{"unknown command after a flag", []string{"entry", "-x", "--", "zap"}, 127, "", "Error: \"zap\" is not a command…"},
		{"no command", nil, 127, "", "Usage:\n…"},
		{"half a command", []string{"entry"}, 127, "", "Usage:\n  credence-server entry…"},

		{"unknown flag", []string{"entry", "create", "-spifeID", "x"}, 1, "", "Error: unknown flag: --spifeID\nhint: credence-server entry create -h lists the flags\n"},
		{"flag without its value", []string{"entry", "create", "-spiffeID"}, 1, "", "Error: flag needs an argument: --spiffeID\nhint: …"},
		{"error", []string{"fail", "-kind", "plain"}, 1, "", "Error: it broke\n"},
		{"error with a hint", []string{"fail", "-kind", "hint"}, 1, "", "Error: doing it: it broke\nhint: mend it\n"},
		{"error from a server", []string{"fail", "-kind", "status"}, 1, "", "Error: deleting entry: no such entry (NotFound)\n"},
		{"error already reported", []string{"fail", "-kind", "reported"}, 1, "", ""},

		{"completion of a flag", []string{"__complete", "entry", "create", "-spi"}, 0, "--spiffeID\tSPIFFE ID\n:4\n", "…"},
		{"completion of a command", []string{"__complete", "ent"}, 0, "entry\tentries\n:4\n", "…"},
		{"completion script", []string{"completion", "bash"}, 0, "# bash completion…", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr bytes.Buffer
			exit := Run(t.Context(), Persona{}, program(), test.args, Streams{strings.NewReader(""), &stdout, &stderr})
			if exit != test.exit {
				t.Errorf("exit code %d, want %d", exit, test.exit)
			}
			compareText(t, "stdout", test.stdout, stdout.String())
			compareText(t, "stderr", test.stderr, stderr.String())
		})
	}
}

// Under SPIRE's name, mistakes are reported where and as SPIRE does: scripts
// match the first line. The usage text below it is ours.
func TestRunAsSPIRE(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name           string
		args           []string
		exit           int
		stdout, stderr string // exact, or with "…" at the end: a prefix
	}{
		{"words end the flags", []string{"entry", "create", "-admin", "no", "-spiffeID", "x"}, 0, "id= selectors=[] admin=true args=[]\n", ""},
		{"two dashes end the flags", []string{"entry", "create", "-admin", "--", "-spiffeID", "x"}, 0, "id= selectors=[] admin=true args=[]\n", ""},
		{"help of a verb", []string{"entry", "create", "-h"}, 0, "", "Usage:\n  credence-server entry create…"},
		{"version", []string{"-version"}, 0, "", "v1.2.3\n"},
		{"version in a letter", []string{"-v"}, 0, "", "v1.2.3\n"},
		{"help before the version", []string{"-v", "-h"}, 0, "", "Usage:\n…"},
		{"unknown command", []string{"entri"}, 127, "", "Usage:\n…"},
		{"no command", nil, 127, "", "Usage:\n…"},
		{"unknown verb", []string{"entry", "zap"}, 1, "", "Usage:\n  credence-server entry…"},
		{"half a command", []string{"entry"}, 1, "", "Usage:\n  credence-server entry…"},
		{"unknown flag", []string{"entry", "create", "--spifeID", "x"}, 1, "", "flag provided but not defined: -spifeID\nUsage:\n…"},
		{"unknown letter", []string{"entry", "create", "-x"}, 1, "", "flag provided but not defined: -x\nUsage:\n…"},
		{"flag without its value", []string{"entry", "create", "-spiffeID"}, 1, "", "flag needs an argument: -spiffeID\nUsage:\n…"},
		{"no boolean", []string{"entry", "create", "-admin=maybe"}, 1, "", "invalid boolean value \"maybe\" for -admin: parse error\nUsage:\n…"},
		{"no number", []string{"entry", "create", "-ttl", "soon"}, 1, "", "invalid value \"soon\" for flag -ttl: parse error\nUsage:\n…"},
		{"too large a number", []string{"entry", "create", "-ttl", "99999999999999999999"}, 1, "", "invalid value \"99999999999999999999\" for flag -ttl: value out of range\nUsage:\n…"},
		{"no duration", []string{"entry", "create", "-for", "soon"}, 1, "", "invalid value \"soon\" for flag -for: parse error\nUsage:\n…"},
		{"no format", []string{"entry", "create", "-output", "xml"}, 1, "", "invalid value \"xml\" for flag -output: bad formatter flag: unknown format option: \"xml\"\nUsage:\n…"},
		{"two formats", []string{"entry", "create", "-output", "json", "-output", "pretty"}, 1, "", "invalid value \"pretty\" for flag -output: the output format has already been set to \"json\"\nUsage:\n…"},
		{"error with a hint", []string{"fail", "-kind", "hint"}, 1, "", "Error: doing it: it broke\n"},
		{"error from a server", []string{"fail", "-kind", "status"}, 1, "", "Error: deleting entry: rpc error: code = NotFound desc = no such entry\n"},
		{"error already reported", []string{"fail", "-kind", "reported"}, 1, "", ""},
		{"bare error", []string{"bare"}, 1, "", "it broke\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			root := program()
			root.AddCommand(BareErrors(&cobra.Command{Use: "bare", RunE: func(*cobra.Command, []string) error { return errors.New("it broke") }}))
			var stdout, stderr bytes.Buffer
			exit := Run(t.Context(), Persona{SPIRE: true}, root, test.args, Streams{strings.NewReader(""), &stdout, &stderr})
			if exit != test.exit {
				t.Errorf("exit code %d, want %d", exit, test.exit)
			}
			compareText(t, "stdout", test.stdout, stdout.String())
			compareText(t, "stderr", test.stderr, stderr.String())
		})
	}
}

func compareText(t *testing.T, what, want, got string) {
	t.Helper()
	if prefix, ok := strings.CutSuffix(want, "…"); ok {
		if !strings.HasPrefix(got, prefix) {
			t.Errorf("%s begins %q, want %q", what, got[:min(len(got), 200)], prefix)
		}
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestRunHandsOverTheContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	root := &cobra.Command{Use: "x", RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Context().Err() }}
	var stderr bytes.Buffer
	if exit := Run(ctx, Persona{}, root, nil, Streams{nil, io.Discard, &stderr}); exit != 1 || stderr.String() != "Error: context canceled\n" {
		t.Errorf("exit %d, %q", exit, stderr.String())
	}
}

func TestPersonaAndSocketPaths(t *testing.T) {
	t.Parallel()
	const (
		spireServer = "/tmp/spire-server/private/api.sock"
		spireAgent  = "/tmp/spire-agent/public/api.sock"
		ownServer   = "/run/credence/server/private/api.sock"
		ownAgent    = "/run/credence/agent/public/api.sock"
	)
	type env map[string]string
	tests := []struct {
		name          string
		argv0         string
		uid           int
		env           env
		program       string
		server, agent string
	}{
		{"as ourselves", "credence-server", 0, nil, "credence-server", ownServer, ownAgent},
		{"as spire-server", "/opt/spire/bin/spire-server", 1000, env{"XDG_RUNTIME_DIR": "/run/user/1000"}, "spire-server", spireServer, spireAgent},
		{"as spire-agent", "spire-agent", 0, nil, "spire-server", spireServer, spireAgent},
		{"as spire by variable", "x", 0, env{"CREDENCE_PERSONA": "spire"}, "spire-server", spireServer, spireAgent},
		{"as ourselves by variable", "spire-server", 0, env{"CREDENCE_PERSONA": "credence"}, "credence-server", ownServer, ownAgent},
		{"a user", "credence-agent", 1000, env{"XDG_RUNTIME_DIR": "/run/user/1000"}, "credence-server",
			"/run/user/1000/credence/server/private/api.sock", "/run/user/1000/credence/agent/public/api.sock"},
		{"a user without a runtime folder", "credence-agent", 1000, nil, "credence-server", ownServer, ownAgent},
		{"root with a runtime folder", "credence-agent", 0, env{"XDG_RUNTIME_DIR": "/run/user/0"}, "credence-server", ownServer, ownAgent},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := personaOf(test.argv0, test.uid, func(name string) string { return test.env[name] })
			got := []string{p.Program("server"), p.ServerSocket(), p.AgentSocket()}
			if diff := cmp.Diff([]string{test.program, test.server, test.agent}, got); diff != "" {
				t.Errorf("persona (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSocketPathPrecedence(t *testing.T) {
	t.Parallel()
	const (
		variable = "SPIRE_SERVER_PRIVATE_SOCKET"
		template = variable + "_TEMPLATE"
	)
	tests := []struct {
		name string
		args []string
		env  map[string]string
		want string // begins with "error: " for an error
	}{
		{"default", nil, nil, "/run/credence/server/private/api.sock"},
		{"environment", nil, map[string]string{variable: "/env"}, "/env"},
		{"template without instance", nil, map[string]string{template: "/t/%i"}, "/run/credence/server/private/api.sock"},
		{"instance", []string{"--instance", "a"}, map[string]string{variable: "/env", template: "/t/%i/%i.sock"}, "/t/a/a.sock"},
		{"flag", []string{"--socketPath", "/flag", "--instance", "a"}, map[string]string{variable: "/env", template: "/t/%i"}, "/flag"},
		{"flag with the default's value", []string{"--socketPath", "/run/credence/server/private/api.sock"}, map[string]string{variable: "/env"}, "/run/credence/server/private/api.sock"},
		{"instance without template", []string{"--instance", "a"}, nil, "error: you must define " + template + " to use the instance flag"},
		{"template without %i", []string{"--instance", "a"}, map[string]string{template: "/t"}, "error: failed to find %i in " + template},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			flags := pflag.NewFlagSet("x", pflag.ContinueOnError)
			s := ServerSocket(flags, personaOf("x", 0, func(name string) string { return test.env[name] }))
			if err := flags.Parse(test.args); err != nil {
				t.Fatal(err)
			}
			got, err := s.Path()
			if err != nil {
				got = "error: " + err.Error()
			}
			if got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestDial(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "api.sock")
	serve := func() (stop func()) {
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		srv := grpc.NewServer()
		grpc_health_v1.RegisterHealthServer(srv, health.NewServer())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := srv.Serve(ln); err != nil {
				t.Errorf("Serve: %v", err)
			}
		})
		return func() { srv.Stop(); wg.Wait() }
	}
	stop := serve()
	cc, err := Dial(t.Context(), "unix://"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	check := func(when string) {
		_, err := grpc_health_v1.NewHealthClient(cc).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true))
		if err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	check("first connection")
	stop()
	cc.WaitForStateChange(t.Context(), connectivity.Ready)
	stop = serve()
	defer stop()
	check("after the server came back")
}

func TestDialExplains(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(dir, strings.Repeat("x", 108))
	tests := []struct{ name, path, problem, hint string }{
		{"no socket", filepath.Join(dir, "none"), "no socket at ", "start the server or agent first"},
		{"nobody listens", dead, "nobody listens on ", "has stopped"},
		{"too long", long, "connecting to ", "at most 107 bytes"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := Dial(t.Context(), test.path)
			h, ok := errors.AsType[*hinted](err)
			if !ok || !strings.HasPrefix(err.Error(), test.problem+test.path) || !strings.Contains(h.hint, test.hint) {
				t.Errorf("got %v (%+v)", err, h)
			}
		})
	}
	err = explain("/p", os.NewSyscallError("connect", os.ErrPermission))
	if h, ok := errors.AsType[*hinted](err); !ok || !strings.HasPrefix(err.Error(), "no access to /p") || !strings.Contains(h.hint, "group") {
		t.Errorf("permission: %v", err)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		info debug.BuildInfo
		want string
	}{
		{"module version", debug.BuildInfo{Main: debug.Module{Version: "v1.0.0"}}, "v1.0.0"},
		{"nothing recorded", debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, "devel"},
		{"commit", debug.BuildInfo{Settings: []debug.BuildSetting{
			{Key: "vcs.revision", Value: "0123456789abcdef"}, {Key: "vcs.modified", Value: "true"},
		}}, "devel-0123456789ab+dirty"},
	}
	for _, test := range tests {
		if got := fromBuildInfo(&test.info); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
	if Version() == "" {
		t.Error("Version is empty")
	}
}
