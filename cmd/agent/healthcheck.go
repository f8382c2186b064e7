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
	verbose := cmd.Flags().Bool("verbose", false, "say what is done, and what went wrong")
	cmd.Flags().Bool("shallow", false, "accepted for SPIRE's scripts; the check is the same")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *verbose {
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), "Checking agent health..."); err != nil {
				return err
			}
		}
		unhealthy := func(reason string) error {
			fmt.Fprintf(cmd.ErrOrStderr(), "Agent is unhealthy: %s\n", reason)
			return cli.ErrReported
		}
		conn, err := socket.Conn()
		if err != nil {
			return unhealthy(err.Error())
		}
		defer conn.Close() //nolint:errcheck // the process ends
		resp, err := grpc_health_v1.NewHealthClient(conn).Check(cmd.Context(), &grpc_health_v1.HealthCheckRequest{})
		if err != nil && *verbose {
			fmt.Fprintf(cmd.ErrOrStderr(), "Failed to check health: %v\n", err)
		}
		switch {
		case err != nil && p.SPIRE:
			return unhealthy("unable to determine health") // SPIRE keeps the reason for -verbose.
		case err != nil:
			return unhealthy(fmt.Sprintf("unable to determine health: %v", err))
		case resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING:
			return unhealthy(fmt.Sprintf("agent returned status %q", resp.GetStatus()))
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), "Agent is healthy.")
		return err
	}
	return cmd
}
