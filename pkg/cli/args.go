package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// unknownCommand is what args asked for when it is not there; name is empty
// when they stop before a verb.
type unknownCommand struct {
	group *cobra.Command
	name  string
}

func (u *unknownCommand) report(p Persona, w io.Writer) int {
	switch {
	case p.SPIRE:
		fmt.Fprint(w, u.group.UsageString())
		if u.group.HasParent() { // SPIRE knows the noun, and only misses the verb.
			return exitFailed
		}
	case u.name != "":
		hint := fmt.Sprintf("%s -h lists the commands", u.group.CommandPath())
		u.group.SuggestionsMinimumDistance = 2
		if near := u.group.SuggestionsFor(u.name); len(near) > 0 {
			hint = fmt.Sprintf("did you mean %s %s?", u.group.CommandPath(), near[0])
		}
		report(w, Hint(fmt.Errorf("%q is not a command of %s", u.name, u.group.CommandPath()), hint))
	default:
		fmt.Fprint(w, u.group.UsageString())
	}
	return exitUnknownCommand
}

// request is what args ask for.
type request struct {
	args    []string        // for the flag parser
	unknown *unknownCommand // nil: the command exists
	version bool            // the version of the program, and no command
}

// normalize writes every single-dash long flag with two dashes, which is what
// the flag parser reads, and leaves values alone, also those that begin with a
// dash. It follows the commands in args to know which flags take a value. As
// SPIRE, it drops all that follows the first word that is no flag of a verb.
func normalize(p Persona, root *cobra.Command, args []string) request {
	w := walk{cmd: root, dropsWords: p.SPIRE, out: make([]string, 0, len(args))}
	completing := len(args) > 0 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd)
	if completing { // __complete entry create -spi: the last word is unfinished.
		w.out = append(w.out, args[0])
		args = args[1:]
	}
	for len(args) > 0 {
		if completing && len(args) == 1 {
			w.out = append(w.out, longFlag(args[0]))
			break
		}
		args = w.step(args)
	}
	r := request{args: w.out, version: w.version && !w.help}
	if !completing && !w.help && !w.version && !w.cmd.Runnable() && w.cmd.HasSubCommands() {
		r.unknown = &unknownCommand{group: w.cmd, name: w.positional}
	}
	return r
}

type walk struct {
	cmd        *cobra.Command // the command that the words so far name
	dropsWords bool           // words that are no commands end the flags, and are dropped
	positional string         // the first word that is not a command
	help       bool           // help is asked for
	version    bool           // the version is asked for
	out        []string
}

// step takes the first of args, with its value, and returns the rest.
func (w *walk) step(args []string) []string {
	arg, rest := args[0], args[1:]
	drops := w.dropsWords && w.cmd.HasParent() && !w.cmd.HasSubCommands()
	switch {
	case arg == "--":
		if drops {
			return nil
		}
		w.out = append(w.out, args...)
		if len(rest) > 0 && w.positional == "" {
			w.positional = rest[0]
		}
		return nil
	case len(arg) < 2 || arg[0] != '-':
		if drops {
			return nil
		}
		w.word(arg)
		w.out = append(w.out, arg)
		return rest
	}

	name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	switch name {
	case "h", "help":
		w.help = true
	case "version", "v":
		w.version = w.version || w.cmd == w.cmd.Root()
	}
	flag := w.flag(name)
	w.out = append(w.out, longFlag(arg))
	takesValue := !hasValue && flag != nil && flag.NoOptDefVal == ""
	if takesValue && len(rest) > 0 {
		w.out = append(w.out, rest[0])
		return rest[1:]
	}
	return rest
}

// flag is the flag of the current command with that name, or with that letter.
func (w *walk) flag(name string) *pflag.Flag {
	if len(name) == 1 {
		return w.cmd.Flags().ShorthandLookup(name)
	}
	return w.cmd.Flag(name)
}

func (w *walk) word(arg string) {
	if w.positional != "" {
		return
	}
	for _, sub := range w.cmd.Commands() {
		if sub.Name() == arg || sub.HasAlias(arg) {
			w.cmd = sub
			return
		}
	}
	w.positional = arg
}

// longFlag is arg with two dashes if it has one dash and more than one letter.
func longFlag(arg string) string {
	if len(arg) > 2 && arg[0] == '-' && arg[1] != '-' && arg[2] != '=' {
		return "-" + arg
	}
	return arg
}
