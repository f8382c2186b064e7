package main

import (
	"context"

	"github.com/credence-id/credence/pkg/agent"
	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
)

func csiCommand(p cli.Persona) *cobra.Command {
	cmd := &cobra.Command{
		Use: "csi", Short: "Run the CSI driver of an agent whose section csi says own_process", Args: cobra.NoArgs,
	}
	s := newSettings(cmd.Flags(), p)
	check := cmd.Flags().Bool("check", false, "ask the driver that runs whether it answers, and end: for the probe of a container")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := s.load()
		if err != nil {
			return err
		}
		if *check {
			return agent.CheckCSI(cmd.Context(), c)
		}
		return logged(cmd.Context(), c, func(ctx context.Context, o agent.Options) error { return agent.ServeCSI(ctx, c, o) })
	}
	return cmd
}
