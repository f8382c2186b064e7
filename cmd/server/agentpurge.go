package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// expiredForDefault is SPIRE's: agents that have been gone for a month.
const expiredForDefault = 30 * 24 * time.Hour

// purged is what `agent purge` prints in JSON.
type purged struct {
	Agents []purgedAgent `json:"expired_agents"`
}

type purgedAgent struct {
	ID      string `json:"agent_id"`
	Deleted bool   `json:"deleted"`
	Error   string `json:"error,omitempty"`
}

func agentPurge(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var progress *cli.Progress
	var expiredFor *time.Duration
	var dryRun *bool
	cmd := verb(p, "purge", "Forget agents that expired long ago and can attest again", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		client := agentv1.NewAgentClient(conn)
		agents, err := listAgents(ctx, client,
			&agentv1.ListAgentsRequest_Filter{ByCanReattest: wrapperspb.Bool(true)}, &types.AgentMask{X509SvidExpiresAt: true})
		if err != nil {
			return fmt.Errorf("failed to list agents: %w", err)
		}
		agents = expired(agents, time.Now().Add(-*expiredFor))

		result := purged{Agents: make([]purgedAgent, 0, len(agents))}
		progress.Start(cmd.ErrOrStderr(), "purging agents", len(agents))
		var failed bool
		for _, a := range agents {
			one := purgedAgent{ID: idText(a.GetId())}
			if !*dryRun {
				_, err := client.DeleteAgent(ctx, &agentv1.DeleteAgentRequest{Id: a.GetId()})
				one.Deleted = err == nil
				if err != nil {
					one.Error, failed = err.Error(), true
				}
			}
			result.Agents = append(result.Agents, one)
			progress.Add(1)
		}
		progress.End()
		err = format.PrintValue(cmd.OutOrStdout(), func(w io.Writer) error { return result.print(w, *dryRun) }, result)
		if err != nil || !failed || p.SPIRE { // SPIRE's scripts expect exit code 0.
			return err
		}
		return errors.New("failed to purge one or more agents")
	})
	format = cli.OutputFlag(cmd.Flags())
	progress = cli.ProgressFlag(cmd.Flags())
	expiredFor = cmd.Flags().Duration("expiredFor", expiredForDefault, "how long ago an agent's SVID has to have expired")
	dryRun = cmd.Flags().Bool("dryRun", false, "say which agents would be forgotten, and forget none")
	return cmd
}

// expired are the agents whose SVID expired before a time.
func expired(agents []*types.Agent, before time.Time) []*types.Agent {
	var out []*types.Agent
	for _, a := range agents {
		if time.Unix(a.GetX509SvidExpiresAt(), 0).Before(before) {
			out = append(out, a)
		}
	}
	return out
}

// print writes what was purged in SPIRE's words, which scripts read.
func (r *purged) print(w io.Writer, dryRun bool) error {
	out := printer{w: w}
	if len(r.Agents) == 0 {
		out.printf("No agents to purge.\n")
		return out.err
	}
	out.printf("Found %s\n\n", counted(len(r.Agents), "expired agent", "expired agents"))
	if dryRun {
		out.printf("\nAgents that can be purged:\n")
		for _, a := range r.Agents {
			out.printf("SPIFFE ID         : %s\n", a.ID)
		}
		return out.err
	}
	title := "Agents purged:\n"
	for _, a := range r.Agents {
		if a.Deleted {
			out.printf("%sSPIFFE ID         : %s\n", title, a.ID)
			title = ""
		}
	}
	title = "Agents not purged:\n"
	for _, a := range r.Agents {
		if !a.Deleted {
			out.printf("%sSPIFFE ID         : %s\nError             : %s\n", title, a.ID, a.Error)
			title = ""
		}
	}
	return out.err
}
