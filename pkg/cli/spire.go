package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// bareErrors marks a command; see [BareErrors].
const bareErrors = "bare-errors"

// BareErrors says that under SPIRE's name cmd, and the commands below it, print
// errors as they are, without "Error: " in front: SPIRE's agent does, and its
// server's `run` and `validate`. It returns cmd.
func BareErrors(cmd *cobra.Command) *cobra.Command {
	if cmd.Annotations == nil {
		cmd.Annotations = make(map[string]string)
	}
	cmd.Annotations[bareErrors] = "true"
	return cmd
}

// speakAsSPIRE puts help, the version and mistakes in flags where SPIRE's
// programs put them: on standard error.
func speakAsSPIRE(root *cobra.Command) {
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		cmd.SetOut(cmd.ErrOrStderr())
		help(cmd, args)
	})
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		fmt.Fprintln(cmd.ErrOrStderr(), flagProblem(err))
		fmt.Fprint(cmd.ErrOrStderr(), cmd.UsageString())
		return ErrReported
	})
}

// flagProblem is what SPIRE's programs say of a mistake in the flags.
func flagProblem(err error) string {
	if missing, ok := errors.AsType[*pflag.NotExistError](err); ok {
		return "flag provided but not defined: -" + missing.GetSpecifiedName()
	}
	if missing, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		return "flag needs an argument: -" + missing.GetSpecifiedName()
	}
	invalid, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return err.Error()
	}
	cause, flag := invalid.Unwrap().Error(), invalid.GetFlag()
	number, isNumber := errors.AsType[*strconv.NumError](err)
	switch {
	case isNumber && errors.Is(number, strconv.ErrRange):
		cause = "value out of range"
	case isNumber || flag.Value.Type() == "duration":
		cause = "parse error"
	}
	if flag.Value.Type() == "bool" {
		return fmt.Sprintf("invalid boolean value %q for -%s: %s", invalid.GetValue(), flag.Name, cause)
	}
	return fmt.Sprintf("invalid value %q for flag -%s: %s", invalid.GetValue(), flag.Name, cause)
}

// reportAsSPIRE prints an error of cmd as SPIRE does: without a hint, and with
// gRPC's words around a status.
func reportAsSPIRE(w io.Writer, cmd *cobra.Command, err error) {
	for c := cmd; c != nil; c = c.Parent() {
		if c.Annotations[bareErrors] != "" {
			fmt.Fprintln(w, err)
			return
		}
	}
	fmt.Fprintf(w, "Error: %s\n", err)
}

// ConfigError is an error about reading the configuration file at path; of one
// that is not there it says, in SPIRE's words, which file that is.
func ConfigError(path string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if full, absErr := filepath.Abs(path); absErr == nil {
		path = full
	}
	return fmt.Errorf("could not find config file %s: please use the -config flag", path)
}
