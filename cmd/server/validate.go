package main

import (
	"fmt"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
)

func validateCommand(p cli.Persona) *cobra.Command {
	cmd := &cobra.Command{Use: "validate", Short: "Check a configuration file without running it", Args: cobra.NoArgs}
	s := newSettings(cmd.Flags())
	static := cmd.Flags().Bool("static", false, "check the text alone, and not the files and directories it names: for another machine's configuration")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := s.load()
		if err != nil {
			return err
		}
		check := c.Preflight
		if *static {
			check = c.Validate
		}
		if err := check(); err != nil {
			return err
		}
		name := "Credence"
		if p.SPIRE {
			name = "SPIRE"
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s server configuration file is valid.\n", name)
		return err
	}
	return cmd
}
