package peers

import (
	"regexp"
	"slices"
	"testing"
)

// What SPIRE's help says: commands are indented by four spaces, flags by two.
var (
	helpGroup   = regexp.MustCompile(`Available commands are:|Subcommands:`)
	helpCommand = regexp.MustCompile(`(?m)^    ([a-z0-9]+)\s`)
	helpFlag    = regexp.MustCompile(`(?m)^  -([A-Za-z0-9]+)`)
)

// TestEveryCommandAndFlag walks the help of SPIRE's programs: each command is one
// of ours too, with each of its flags.
func TestEveryCommandAndFlag(t *testing.T) {
	t.Parallel()
	theirs, mine := spire(t), ours(t)
	for role, files := range map[string][2]string{"server": {theirs.server(), mine.server()}, "agent": {theirs.agent(), mine.agent()}} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			verbs := 0
			var walk func(words ...string)
			walk = func(words ...string) {
				help := runCommand(t, files[0], append(slices.Clone(words), "-h")...)
				text := help.stdout + help.stderr
				// A group's help prints that of its commands too.
				var commands [][]string
				if at := helpGroup.FindStringIndex(text); at != nil {
					commands = helpCommand.FindAllStringSubmatch(text[at[1]:], -1)
				}
				for _, c := range commands {
					walk(append(slices.Clone(words), c[1])...)
				}
				if len(commands) > 0 {
					return
				}
				verbs++
				own := runCommand(t, files[1], append(slices.Clone(words), "-h")...)
				if own.code != 0 {
					t.Errorf("%v: there is no such command: %d, %s", words, own.code, own.stderr)
					return
				}
				for _, f := range helpFlag.FindAllStringSubmatch(text, -1) {
					if !regexp.MustCompile(`-` + f[1] + `\b`).MatchString(own.stdout + own.stderr) {
						t.Errorf("%v has no flag -%s", words, f[1])
					}
				}
			}
			walk()
			t.Logf("%d commands", verbs)
			if want := map[string]int{"server": 44, "agent": 11}[role]; verbs < want {
				t.Errorf("%d commands were found in SPIRE's help, want %d at least", verbs, want)
			}
		})
	}
}
