package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/credence-id/credence/pkg/store/dump"
	"github.com/spf13/cobra"
)

func storeVerify(cli.Persona) *cobra.Command {
	var in *string
	cmd, _ := storeVerb("verify", "Say whether a backup is whole, and what it is of", func(_ context.Context, cmd *cobra.Command, f *storeFlags) error {
		sum, err := verifyFile(*in)
		if err != nil {
			return err
		}
		return f.printBackup(cmd.OutOrStdout(), *in, sum)
	})
	in = cmd.Flags().String("in", "", "the backup")
	return cmd
}

// verifyFile reads a whole backup.
func verifyFile(path string) (sum dump.Summary, err error) {
	if path == "" {
		return sum, cli.Hint(errors.New("-in is required"), "it is a file that `credence-server store backup` has written")
	}
	f, err := os.Open(path)
	if err != nil {
		return sum, fmt.Errorf("-in: %w", err)
	}
	defer f.Close() //nolint:errcheck // it was read only
	if sum, err = dump.Verify(f); err != nil {
		return sum, dumpError(fmt.Errorf("%s: %w", path, err))
	}
	return sum, nil
}
