package main

import (
	"context"
	"fmt"
	"io"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"google.golang.org/grpc"
)

func tokenGenerate(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var spiffeID *string
	var ttl *int
	cmd := verb(p, "generate", "Make a join token, with which one agent can attest", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		req := &agentv1.CreateJoinTokenRequest{}
		var err error
		if *spiffeID != "" {
			if req.AgentId, err = parseID("spiffeID", *spiffeID); err != nil {
				return err
			}
		}
		if req.Ttl, err = toInt32(*ttl); err != nil {
			return fmt.Errorf("invalid value for TTL: %w", err)
		}
		token, err := agentv1.NewAgentClient(conn).CreateJoinToken(ctx, req)
		if err != nil {
			return err
		}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
			out := printer{w: w}
			out.printf("Token: %s\n", token.GetValue())
			if *spiffeID == "" {
				out.printf("Warning: Missing SPIFFE ID.\n")
			}
			return out.err
		}, token)
	})
	format = cli.OutputFlag(cmd.Flags())
	spiffeID = cmd.Flags().String("spiffeID", "", "a second SPIFFE ID for the agent, by an entry that goes with it")
	ttl = cmd.Flags().Int("ttl", 600, "how long the token may be used, in seconds")
	return cmd
}
