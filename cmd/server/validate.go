package main

import (
	"fmt"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
)

func validateCommand(p cli.Persona) *cobra.Command {
	cmd := &cobra.Command{Use: "validate", Short: "Check a configuration file without running it", Args: cobra.NoArgs}
	s := newSettings(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		_, err := s.load()
		switch {
		case err == nil && p.SPIRE:
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "SPIRE server configuration file is valid.")
		case err == nil:
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "Credence server configuration file is valid.")
		case p.SPIRE:
			err = fmt.Errorf("SPIRE server configuration file is invalid: %w", err)
		}
		return err
	}
	return cli.BareErrors(cmd)
}
