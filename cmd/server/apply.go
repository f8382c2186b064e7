package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/credence-id/credence/pkg/manifest"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"google.golang.org/grpc"
)

// applyFlags are the flags of `entry apply`.
type applyFlags struct {
	flags         *pflag.FlagSet
	files         []string
	set           string
	prune, dryRun bool
	progress      *cli.Progress
	format        *cli.Format
}

func entryApply(p cli.Persona) *cobra.Command {
	var f *applyFlags
	cmd := verb(p, "apply", "Make the entries what files declare", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		set, err := f.setName()
		if err != nil {
			return err
		}
		desired, err := manifest.Load(set, cmd.InOrStdin(), f.files...)
		if err != nil {
			return cli.Hint(err, "docs/cli.md describes the files")
		}
		client := entryv1.NewEntryClient(conn)
		current, err := listEntries(ctx, client, nil)
		if err != nil {
			return fmt.Errorf("reading the entries there are: %w", err)
		}
		plan := manifest.Diff(set, desired, current, f.prune)
		a := newApplication(set, plan, f.dryRun)
		return a.run(ctx, cmd, client, f)
	})
	f = newApplyFlags(cmd.Flags())
	return cmd
}

func newApplyFlags(flags *pflag.FlagSet) *applyFlags {
	f := &applyFlags{flags: flags, format: cli.OutputFlag(flags), progress: cli.ProgressFlag(flags)}
	flags.StringArrayVarP(&f.files, "file", "f", nil, "a YAML or JSON file, a folder of them, or - for standard input; may be repeated")
	flags.StringVar(&f.set, "set", manifest.DefaultSet, "the name of what the files declare: it is part of the entries' IDs, and says which entries -prune may delete")
	flags.BoolVar(&f.prune, "prune", false, "delete entries of the set that the files do not declare; -set has to name it")
	flags.BoolVar(&f.dryRun, "dry-run", false, "say what would change, and change nothing")
	flags.BoolVar(&f.dryRun, "dryRun", false, "the same as -dry-run, as `agent purge` has it")
	flags.Lookup("dryRun").Hidden = true
	return f
}

// setName checks the flags.
func (f *applyFlags) setName() (manifest.Set, error) {
	if len(f.files) == 0 {
		return manifest.Set{}, cli.Hint(errors.New("-f is required"), "-f names a YAML or JSON file, or a folder of them")
	}
	if f.prune && !f.flags.Changed("set") {
		return manifest.Set{}, cli.Hint(errors.New("-prune needs -set"), "the set says which entries may be deleted: give each folder of files a name of its own")
	}
	set, err := manifest.ParseSet(f.set)
	if err != nil {
		return set, fmt.Errorf("-set: %w", err)
	}
	return set, nil
}

// application is what `entry apply` prints in JSON.
type application struct {
	Set        string          `json:"set"`
	DryRun     bool            `json:"dry_run"`
	Changes    []appliedChange `json:"changes"`
	Unchanged  int             `json:"unchanged"`
	Undeclared []string        `json:"undeclared"` // IDs that -prune would delete
}

type appliedChange struct {
	Action     manifest.Action `json:"action"`
	EntryID    string          `json:"entry_id"`
	SPIFFEID   string          `json:"spiffe_id"`
	DeclaredAt string          `json:"declared_at"` // file:line
	Fields     []appliedField  `json:"fields"`
	Done       bool            `json:"done"`
	Error      string          `json:"error"`

	step manifest.Step
}

type appliedField struct {
	Field string   `json:"field"`
	From  []string `json:"from"`
	To    []string `json:"to"`
}

func newApplication(set manifest.Set, plan manifest.Plan, dryRun bool) *application {
	a := &application{
		Set: set.String(), DryRun: dryRun, Changes: make([]appliedChange, 0, len(plan.Steps)),
		Unchanged: plan.Unchanged, Undeclared: append([]string{}, plan.Undeclared...),
	}
	for _, s := range plan.Steps {
		c := appliedChange{
			Action: s.Action, EntryID: s.Entry.GetId(), SPIFFEID: idText(s.Entry.GetSpiffeId()),
			DeclaredAt: s.At, Fields: []appliedField{}, Error: s.Problem, step: s,
		}
		fields := s.Changes
		if s.Action == manifest.Create {
			fields = manifest.Fields(s.Entry)
		}
		for _, f := range fields {
			if len(f.From) > 0 || len(f.To) > 0 {
				c.Fields = append(c.Fields, appliedField{f.Field, append([]string{}, f.From...), append([]string{}, f.To...)})
			}
		}
		a.Changes = append(a.Changes, c)
	}
	return a
}

// run prints the plan and, unless it is a dry run, carries it out.
func (a *application) run(ctx context.Context, cmd *cobra.Command, client entryv1.EntryClient, f *applyFlags) error {
	out, bad := printer{w: cmd.OutOrStdout()}, printer{w: cmd.ErrOrStderr()}
	if f.format.IsPretty() {
		a.printPlan(&out)
	}
	var broken error
	if !a.DryRun {
		f.progress.Start(cmd.ErrOrStderr(), "applying changes", a.count(false))
		broken = a.carryOut(ctx, client, f.progress)
		f.progress.End()
	}
	for _, c := range a.Changes {
		switch {
		case c.Action == manifest.Refuse:
			bad.printf("Entry %s (%s) cannot be as declared: %s\n", c.EntryID, c.DeclaredAt, c.Error)
		case c.Error != "":
			bad.printf("Failed to %s entry %s: %s\n", c.Action, c.name(), c.Error)
		}
	}
	err := f.format.PrintValue(cmd.OutOrStdout(), func(io.Writer) error {
		a.printSummary(&out)
		return out.err
	}, a)
	if err = errors.Join(err, bad.err); err != nil {
		return err
	}
	if broken != nil {
		return cli.Hint(broken, "what was done stays; the same command does the rest")
	}
	if failed := a.failed(); failed > 0 {
		return cli.Hint(fmt.Errorf("%s failed", counted(failed, "entry", "entries")), "mend what is said above and run the same command again")
	}
	return nil
}

func (a *application) failed() int {
	var n int
	for _, c := range a.Changes {
		if c.Error != "" {
			n++
		}
	}
	return n
}

// count is how many changes are to be made, or were made.
func (a *application) count(done bool, actions ...manifest.Action) int {
	var n int
	for _, c := range a.Changes {
		counts := c.Action != manifest.Refuse && len(actions) == 0
		for _, action := range actions {
			counts = counts || c.Action == action
		}
		if counts && (c.Done || !done) {
			n++
		}
	}
	return n
}

// name is the entry and where it is declared.
func (c *appliedChange) name() string {
	if c.DeclaredAt == "" {
		return c.EntryID
	}
	return c.EntryID + " (" + c.DeclaredAt + ")"
}

// signs begin the lines of a plan.
var signs = map[manifest.Action]string{manifest.Create: "+", manifest.Update: "~", manifest.Delete: "-", manifest.Refuse: "!"}

func (a *application) printPlan(out *printer) {
	for _, c := range a.Changes {
		out.printf("%s %s %s\n", signs[c.Action], c.name(), c.SPIFFEID)
		for _, f := range c.Fields {
			if c.Action == manifest.Create {
				out.printf("    %-27s %s\n", f.Field+":", valueText(f.To))
			} else {
				out.printf("    %-27s %s -> %s\n", f.Field+":", valueText(f.From), valueText(f.To))
			}
		}
	}
}

func (a *application) printSummary(out *printer) {
	created, updated, deleted := a.count(!a.DryRun, manifest.Create), a.count(!a.DryRun, manifest.Update), a.count(!a.DryRun, manifest.Delete)
	if a.DryRun {
		out.printf("Dry run: %d to create, %d to update, %d to delete, %d refused, %d unchanged\n",
			created, updated, deleted, a.count(false, manifest.Refuse), a.Unchanged)
	} else {
		out.printf("Created %d, updated %d, deleted %d, failed %d, unchanged %d\n", created, updated, deleted, a.failed(), a.Unchanged)
	}
	if n := len(a.Undeclared); n > 0 {
		out.printf("%s of set %s not declared any more; -prune deletes what is not declared\n", counted(n, "entry", "entries"), a.Set)
	}
}

// valueText writes the values of a field on one line.
func valueText(values []string) string {
	if len(values) == 0 {
		return "(none)"
	}
	out := make([]string, 0, len(values))
	for _, v := range values {
		if q := strconv.Quote(v); q != `"`+v+`"` || v == "" {
			v = q // Nothing a server holds may drive the terminal.
		}
		out = append(out, v)
	}
	return strings.Join(out, ", ")
}
