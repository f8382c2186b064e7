package main

import (
	"context"
	"errors"
	"os"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/credence-id/credence/pkg/store/dump"
	"github.com/spf13/cobra"
)

func storeRestore(cli.Persona) *cobra.Command {
	var in *string
	cmd, f := storeVerb("restore", "Make an empty store of a backup", func(ctx context.Context, cmd *cobra.Command, f *storeFlags) error {
		return f.restore(ctx, cmd, *in)
	})
	cmd.Long = `Fills the store of a configuration, which has to be empty and may be of another
engine than the backup's, and reads it back. No server of it may run. The backup
is verified first. The store gets an ID of its own, by which agents know that
their place in the old one's history means nothing here.

A restore that did not end, for whatever reason, leaves a store that no server
takes; run it again.`
	f.offline("config", "the configuration of the server whose store is to be filled")
	in = cmd.Flags().String("in", "", "the backup")
	return cmd
}

func (f *storeFlags) restore(ctx context.Context, cmd *cobra.Command, in string) (err error) {
	if f.config == "" {
		return cli.Hint(errors.New("-config is required"), "it is the configuration of the server whose store is to be filled")
	}
	sum, err := verifyFile(in)
	if err != nil {
		return err
	}
	backup, err := os.Open(in)
	if err != nil {
		return err
	}
	defer backup.Close() //nolint:errcheck // it was read only
	s, err := f.open(ctx, cmd, f.config, true)
	if err != nil {
		return err
	}
	defer closeStore(s, &err)
	read, err := dump.Read(ctx, backup, s, f.counting(cmd, "restoring keys", sum.Keys))
	if err != nil {
		return broken(err)
	}
	f.progress.End()
	return f.printFilled(cmd.OutOrStdout(), "Restored", newFilled(read, s.Info()))
}
