package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func healthcheckCommand(p cli.Persona) *cobra.Command {
	var verbose *bool
	cmd := verb(p, "healthcheck", "Say whether the server is healthy", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		if *verbose {
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), "Checking server health..."); err != nil {
				return err
			}
		}
		resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			if *verbose {
				fmt.Fprintf(cmd.ErrOrStderr(), "Failed to check health: %v\n", err)
			}
			unknown := errors.New("server is unhealthy: unable to determine health")
			if p.SPIRE {
				return unknown // SPIRE keeps the reason for -verbose.
			}
			return fmt.Errorf("%w: %w", unknown, err)
		}
		if resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
			return cli.Hint(fmt.Errorf("server is unhealthy: server returned status %q", resp.GetStatus()), "the server's log says why")
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), "Server is healthy.")
		return err
	})
	verbose = cmd.Flags().Bool("verbose", false, "say what is done")
	cmd.Flags().Bool("shallow", false, "accepted for SPIRE's scripts; the check is the same")
	return cmd
}
