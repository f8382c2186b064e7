package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/credence-id/credence/pkg/importer"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
)

// importFlags are the flags of import.
type importFlags struct {
	from     string
	every    time.Duration
	config   importer.Config
	format   *cli.Format
	progress *cli.Progress
}

func importCommand(p cli.Persona) *cobra.Command {
	f := &importFlags{}
	cmd := verb(p, "import", "Copy what is registered on another server that runs, such as SPIRE's", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		if f.from == "" {
			return cli.Hint(errors.New("-from is required"), "it is the admin socket of the server to import from, such as /tmp/spire-server/private/api.sock")
		}
		switch {
		case f.every < 0:
			return fmt.Errorf("-every: %v is negative", f.every)
		case f.every > 0 && f.config.DryRun:
			return cli.Hint(errors.New("-every and -dry-run exclude each other"), "nothing is written that a second run could go on with")
		}
		if err := differentSockets(conn, f.from); err != nil {
			return err
		}
		from, err := cli.Dial(ctx, f.from)
		if err != nil {
			return fmt.Errorf("-from: %w", err)
		}
		defer from.Close() //nolint:errcheck // the process ends
		f.config.From, f.config.To = from, conn
		return f.run(ctx, cmd)
	})
	cmd.Long = `Copies entries (with their IDs), the bundles of other trust domains and federation
relationships from a running SPIRE-compatible server to this one, and adds the
X.509 and JWT authorities of each server to the bundle of the other, so that
identities of both verify while agents move. What is here already is not written
again: repeat it at will. At the end both servers are read and compared.

Agents are not copied: they attest anew. Join tokens are not copied: no API tells
them. Neither are revision numbers.`
	flags := cmd.Flags()
	flags.StringVar(&f.from, "from", "", "the admin socket of the server to import from")
	flags.BoolVar(&f.config.DryRun, "dry-run", false, "compare and say what would be done; write nothing")
	flags.BoolVar(&f.config.Overwrite, "overwrite", false, "replace what is here and different; otherwise that is an error")
	flags.BoolVar(&f.config.NoAuthorities, "no-authorities", false, "leave the trust domain's bundles of both servers alone")
	flags.BoolVar(&f.config.NoFederation, "no-federation", false, "copy no bundles and relationships of other trust domains")
	flags.BoolVar(&f.config.NoEntries, "no-entries", false, "copy no entries")
	flags.DurationVar(&f.every, "every", 0, "repeat it with this pause until interrupted, while agents move; 0: once")
	f.format = cli.OutputFlag(flags)
	f.progress = cli.ProgressFlag(flags)
	return cmd
}

// differentSockets refuses to import a server into itself.
func differentSockets(conn grpc.ClientConnInterface, from string) error {
	to, ok := conn.(*cli.Conn)
	if !ok {
		return nil
	}
	a, err := os.Stat(socketFile(from))
	if err != nil {
		return nil //nolint:nilerr // Dial says it better
	}
	if b, err := os.Stat(socketFile(to.Path())); err == nil && os.SameFile(a, b) {
		return cli.Hint(fmt.Errorf("-from is the socket of this server, %s", to.Path()), "name this server's socket with -socketPath and the other's with -from")
	}
	return nil
}

// socketFile is the file of a socket that is perhaps written as an address.
func socketFile(path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, "unix://"), "unix:")
}

func (f *importFlags) run(ctx context.Context, cmd *cobra.Command) error {
	stderr := printer{w: cmd.ErrOrStderr()}
	f.config.Problem = func(what, id, reason string) {
		f.progress.End()
		stderr.printf("Failed to import the %s %s: %s\n", what, id, reason)
	}
	f.config.Warn = func(text string) {
		f.progress.End()
		stderr.printf("Warning: %s\n", text)
	}
	f.config.Begin = func(stage string, total int) { f.progress.Start(cmd.ErrOrStderr(), stage, total) }
	f.config.Step = f.progress.Add
	if f.every <= 0 {
		return errors.Join(f.once(ctx, cmd, true), stderr.err)
	}
	for first := true; ; first = false {
		if err := f.once(ctx, cmd, first); err != nil && ctx.Err() == nil {
			stderr.printf("Error: %v\n", err) // The next round may do better.
		}
		select {
		case <-ctx.Done():
			return stderr.err
		case <-time.After(f.every):
		}
	}
}

// once runs the import and prints its report, if it is wanted or tells anything.
func (f *importFlags) once(ctx context.Context, cmd *cobra.Command, report bool) error {
	r, err := importer.Run(ctx, f.config)
	f.progress.End()
	if r == nil || err != nil && !errors.Is(err, importer.ErrIncomplete) {
		return err
	}
	if !report && err == nil && r.Changes == 0 {
		return nil
	}
	return errors.Join(f.format.PrintValue(cmd.OutOrStdout(), func(w io.Writer) error { return printImport(w, r) }, r), err)
}

func printImport(w io.Writer, r *importer.Report) error {
	out := printer{w: w}
	out.printf("Trust domain              : %s\n", r.TrustDomain)
	if a := r.Authorities; a != nil {
		out.printf("X.509 authorities         : %d added here, %d added there\n", a.X509Here, a.X509There)
		out.printf("JWT authorities           : %d added here, %d added there\n", a.JWTHere, a.JWTThere)
	}
	verified := true
	for _, c := range []struct {
		label string
		*importer.Comparison
	}{{"Federated bundles", r.Bundles}, {"Federation relationships", r.Relationships}, {"Entries", r.Entries}} {
		if c.Comparison == nil {
			continue
		}
		verified = verified && c.Verified
		printComparison(&out, c.label, c.Comparison, r.DryRun)
	}
	switch {
	case r.DryRun:
		out.printf("Nothing was written: this was a dry run.\n")
	case verified && r.Problems == 0 && r.Changes == 0:
		out.printf("Nothing to do: both servers are alike.\n")
	case verified && r.Problems == 0:
		out.printf("Verified: both servers are alike.\n")
	}
	out.printf("Agents and join tokens are not imported: agents attest anew.\n")
	return out.err
}

func printComparison(out *printer, label string, c *importer.Comparison, dry bool) {
	created, updated := "created", "replaced"
	if dry {
		created, updated = "to create", "to replace"
	}
	out.printf("%-26s: %d there, %d here already, %d %s", label, c.There, c.Same, c.Created, created)
	for _, n := range []struct {
		n    int
		word string
	}{{c.Updated, updated}, {c.Failed, "failed"}, {c.Expired, "expired and left out"}, {c.OnlyHere, "only here"}} {
		if n.n > 0 {
			out.printf(", %d %s", n.n, n.word)
		}
	}
	out.printf("\n")
	out.printf("  digest there            : sha256:%s\n", c.DigestThere)
	out.printf("  digest here             : sha256:%s\n", c.DigestHere)
}
