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
		err := s.check(*static)
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

// check finds what run would refuse; static, in the text alone.
func (s *settings) check(static bool) error {
	c, err := s.load()
	if err != nil {
		return err
	}
	if static {
		return c.Validate()
	}
	return c.Preflight()
}
