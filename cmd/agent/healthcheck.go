package main

import (
	"errors"
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
		conn, err := socket.Conn()
		if err != nil {
			return unhealthy(cmd, p, err)
		}
		defer conn.Close() //nolint:errcheck // the process ends
		resp, err := grpc_health_v1.NewHealthClient(conn).Check(cmd.Context(), &grpc_health_v1.HealthCheckRequest{})
		switch {
		case err != nil && p.SPIRE: // which keeps the reason for -verbose
			if *verbose {
				fmt.Fprintf(cmd.ErrOrStderr(), "Failed to check health: %v\n", err)
			}
			return unhealthy(cmd, p, errors.New("unable to determine health"))
		case err != nil:
			return unhealthy(cmd, p, err)
		case resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING:
			err := fmt.Errorf("agent returned status %q", resp.GetStatus())
			return unhealthy(cmd, p, cli.Hint(err, "the agent's log says why it is not in sync with its server"))
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), "Agent is healthy.")
		return err
	}
	return cmd
}

// unhealthy says why, in SPIRE's words under its name.
func unhealthy(cmd *cobra.Command, p cli.Persona, reason error) error {
	if !p.SPIRE {
		return fmt.Errorf("agent is unhealthy: %w", reason)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "Agent is unhealthy: %v\n", reason)
	return cli.ErrReported
}
