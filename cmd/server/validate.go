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
		if _, err := s.load(); err != nil {
			return err
		}
		name := "Credence"
		if p.SPIRE {
			name = "SPIRE"
		}
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s server configuration file is valid.\n", name)
		return err
	}
	return cmd
}
