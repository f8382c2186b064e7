package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"
)

// Exit codes, as SPIRE's.
const (
	exitOK             = 0
	exitFailed         = 1
	exitUnknownCommand = 127
)

// ErrReported ends a command with exit code 1 when the command itself has
// already said on stderr what went wrong.
var ErrReported = errors.New("already reported")

// Streams are what a command reads from and writes to.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Main runs the program: the command line of this process, below the root
// command that its persona has. It returns the exit code. SIGINT and SIGTERM end
// the context; a second one ends what takes too long to stop.
func Main(ctx context.Context, root func(Persona) *cobra.Command, s Streams) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	p := Self()
	return Run(ctx, p, root(p), os.Args[1:], s)
}

// Run runs the command that args (without the program's name) ask for, below
// root, and returns the exit code: 0 done or help shown, 1 failed, with the
// problem on s.Err, 127 no such command. -flag and --flag are the same. What p
// is says how mistakes are reported: with a hint, or as SPIRE does.
func Run(ctx context.Context, p Persona, root *cobra.Command, args []string, s Streams) int {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	if root.Version == "" {
		root.Version = Version()
	}
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd(args...)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return Hint(err, fmt.Sprintf("%s -h lists the flags", cmd.CommandPath()))
	})
	if p.SPIRE {
		speakAsSPIRE(root)
	}

	asked := normalize(p, root, args)
	switch {
	case asked.unknown != nil:
		return asked.unknown.report(p, s.Err)
	case asked.version && p.SPIRE:
		fmt.Fprintln(s.Err, root.Version)
		return exitOK
	}
	root.SetArgs(asked.args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	switch {
	case errors.Is(err, ErrReported):
	case p.SPIRE:
		reportAsSPIRE(s.Err, cmd, err)
	default:
		report(s.Err, err)
	}
	return exitFailed
}

// report prints an error, and the next step if the error carries one.
func report(w io.Writer, err error) {
	fmt.Fprintf(w, "Error: %s\n", problem(err))
	if h, ok := errors.AsType[*hinted](err); ok {
		fmt.Fprintf(w, "hint: %s\n", h.hint)
	}
}

// problem is the text of err; that of a gRPC status is shown without gRPC's
// words around it, and with its code at the end.
func problem(err error) string {
	text := err.Error()
	s, ok := status.FromError(err)
	if !ok {
		return text
	}
	noise := fmt.Sprintf("rpc error: code = %s desc = ", s.Code())
	if !strings.Contains(text, noise) {
		return text
	}
	return fmt.Sprintf("%s (%s)", strings.Replace(text, noise, "", 1), s.Code())
}

// hinted is an error with a next step for the reader.
type hinted struct {
	err  error
	hint string
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }

// Hint adds to err what the reader can do next: a sentence without a period.
// Of several hints in a chain the outermost is shown. A nil err stays nil.
func Hint(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &hinted{err: err, hint: hint}
}
