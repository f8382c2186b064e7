package main

import (
	"fmt"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func healthcheckCommand(p cli.Persona) *cobra.Command {
	cmd := &cobra.Command{Use: "healthcheck", Short: "Say whether the agent is healthy", Args: cobra.NoArgs}
	socket := cli.AgentSocket(cmd.Flags(), p)
	verbose := cmd.Flags().Bool("verbose", false, "say what is done")
	cmd.Flags().Bool("shallow", false, "accepted for SPIRE's scripts; the check is the same")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *verbose {
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), "Checking agent health..."); err != nil {
				return err
			}
		}
		conn, err := socket.Dial(cmd.Context())
		if err != nil {
			return fmt.Errorf("agent is unhealthy: %w", err)
		}
		defer conn.Close() //nolint:errcheck // the process ends
		resp, err := grpc_health_v1.NewHealthClient(conn).Check(cmd.Context(), &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			return fmt.Errorf("agent is unhealthy: %w", err)
		}
		if resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			return cli.Hint(fmt.Errorf("agent is unhealthy: it returned status %q", resp.GetStatus()), "the agent's log says why it is not in sync with its server")
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), "Agent is healthy.")
		return err
	}
	return cmd
}
