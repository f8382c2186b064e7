package main

import (
	"context"
	"errors"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/dump"
	"github.com/spf13/cobra"
)

func storeCopy(cli.Persona) *cobra.Command {
	var to *string
	cmd, f := storeVerb("copy", "Copy a store into an empty one, such as from one engine to another", func(ctx context.Context, cmd *cobra.Command, f *storeFlags) error {
		return f.copyTo(ctx, cmd, *to)
	})
	cmd.Long = `Fills the store of one configuration, which has to be empty, with what is in that
of another, and reads it back: store backup and store restore in one, with no file
between them. Stop the servers of both first: what they write while it copies, or
afterwards, is not copied.

A copy that did not end, for whatever reason, leaves a store that no server takes;
run it again.`
	f.offline("from", "the configuration of the server whose store is copied")
	to = cmd.Flags().String("to", "", "the configuration of the server whose store is to be filled")
	return cmd
}

func (f *storeFlags) copyTo(ctx context.Context, cmd *cobra.Command, path string) (err error) {
	if f.config == "" || path == "" {
		return cli.Hint(errors.New("-from and -to are required"), "they are the configurations of the servers whose stores are read and filled")
	}
	from, err := f.open(ctx, cmd, f.config, false)
	if err != nil {
		return err
	}
	defer closeStore(from, &err)
	if err := hasSomething(ctx, from); err != nil {
		return err
	}
	to, err := f.open(ctx, cmd, path, true)
	if err != nil {
		return err
	}
	defer closeStore(to, &err)
	sum, err := dump.Copy(ctx, from, to, f.counting(cmd, "copying keys", 0))
	if err != nil {
		return broken(err)
	}
	f.progress.End()
	return f.printFilled(cmd.OutOrStdout(), "Copied", newFilled(sum, to.Info()))
}

// hasSomething refuses a source that is incomplete, and one with nothing in it,
// which is rather the target.
func hasSomething(ctx context.Context, s store.Store) error {
	if err := dump.CheckWhole(ctx, s); err != nil {
		return dumpError(err)
	}
	empty := true
	err := s.View(ctx, func(tx store.Tx) error {
		for _, err := range tx.Scan("", "") {
			empty = false
			return err
		}
		return nil
	})
	if err == nil && empty {
		err = cli.Hint(errors.New("the store of -from is empty"), "are -from and -to the right way round?")
	}
	return err
}
