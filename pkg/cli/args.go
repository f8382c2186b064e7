package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// unknownCommand is what args asked for when it is not there; name is empty
// when they stop before a verb.
type unknownCommand struct {
	group *cobra.Command
	name  string
}

func (u *unknownCommand) report(w io.Writer) int {
	if u.name != "" {
		hint := fmt.Sprintf("%s -h lists the commands", u.group.CommandPath())
		u.group.SuggestionsMinimumDistance = 2
		if near := u.group.SuggestionsFor(u.name); len(near) > 0 {
			hint = fmt.Sprintf("did you mean %s %s?", u.group.CommandPath(), near[0])
		}
		report(w, Hint(fmt.Errorf("%q is not a command of %s", u.name, u.group.CommandPath()), hint))
		return exitUnknownCommand
	}
	fmt.Fprint(w, u.group.UsageString())
	return exitUnknownCommand
}

// normalize writes every single-dash long flag with two dashes, which is what
// the flag parser reads, and leaves values alone, also those that begin with a
// dash. It follows the commands in args to know which flags take a value.
func normalize(root *cobra.Command, args []string) ([]string, *unknownCommand) {
	w := walk{cmd: root, out: make([]string, 0, len(args))}
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
	if !completing && !w.help && !w.cmd.Runnable() && w.cmd.HasSubCommands() {
		return nil, &unknownCommand{group: w.cmd, name: w.positional}
	}
	return w.out, nil
}

type walk struct {
	cmd        *cobra.Command // the command that the words so far name
	positional string         // the first word that is not a command
	help       bool           // help or the version is asked for
	out        []string
}

// step takes the first of args, with its value, and returns the rest.
func (w *walk) step(args []string) []string {
	arg, rest := args[0], args[1:]
	switch {
	case arg == "--":
		w.out = append(w.out, args...)
		if len(rest) > 0 && w.positional == "" {
			w.positional = rest[0]
		}
		return nil
	case len(arg) < 2 || arg[0] != '-':
		w.word(arg)
		w.out = append(w.out, arg)
		return rest
	}

	name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	switch name {
	case "h", "help":
		w.help = true
	case "version":
		w.help = w.help || w.cmd == w.cmd.Root()
	}
	flag := w.cmd.Flag(name)
	w.out = append(w.out, longFlag(arg))
	takesValue := !hasValue && flag != nil && flag.NoOptDefVal == ""
	if takesValue && len(rest) > 0 {
		w.out = append(w.out, rest[0])
		return rest[1:]
	}
	return rest
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
