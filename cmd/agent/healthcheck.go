package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/credence-id/credence/pkg/cli"
	operatorv1 "github.com/credence-id/credence/proto/operator/v1"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// healthcheck is the flags of the verb, and who called it.
type healthcheck struct {
	persona cli.Persona
	socket  *cli.Socket
	admin   string
	verbose bool
}

func healthcheckCommand(p cli.Persona) *cobra.Command {
	cmd := &cobra.Command{Use: "healthcheck", Short: "Say whether the agent is healthy", Args: cobra.NoArgs}
	h := &healthcheck{persona: p, socket: cli.AgentSocket(cmd.Flags(), p)}
	cmd.Flags().BoolVar(&h.verbose, "verbose", false, "say what is done, and for how long the agent could go on without a server")
	cmd.Flags().Bool("shallow", false, "accepted for SPIRE's scripts; the check is the same")
	cmd.Flags().StringVar(&h.admin, "adminSocketPath", p.AgentAdminSocket(), "with -verbose: path of the agent's admin socket, which is agent.admin_socket_path")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return h.run(cmd) }
	return cmd
}

func (h *healthcheck) run(cmd *cobra.Command) error {
	if h.verbose {
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), "Checking agent health..."); err != nil {
			return err
		}
	}
	conn, err := h.socket.Conn()
	if err != nil {
		return unhealthy(cmd, h.persona, err)
	}
	defer conn.Close() //nolint:errcheck // the process ends
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(cmd.Context(), &grpc_health_v1.HealthCheckRequest{})
	switch {
	case err != nil && h.persona.SPIRE: // which keeps the reason for -verbose
		if h.verbose {
			fmt.Fprintf(cmd.ErrOrStderr(), "Failed to check health: %v\n", err)
		}
		return unhealthy(cmd, h.persona, errors.New("unable to determine health"))
	case err != nil:
		return unhealthy(cmd, h.persona, err)
	}
	if serving := resp.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING; serving {
		if _, err := fmt.Fprintln(cmd.OutOrStdout(), "Agent is healthy."); err != nil {
			return err
		}
	} else {
		err = unhealthy(cmd, h.persona, cli.Hint(fmt.Errorf("agent returned status %q", resp.GetStatus()),
			"the agent's log says why it is not in sync with its server"))
	}
	if h.verbose && !h.persona.SPIRE {
		return errors.Join(err, h.showBudget(cmd.Context(), cmd.OutOrStdout()))
	}
	return err
}

// unhealthy says why, in SPIRE's words under its name.
func unhealthy(cmd *cobra.Command, p cli.Persona, reason error) error {
	if !p.SPIRE {
		return fmt.Errorf("agent is unhealthy: %w", reason)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "Agent is unhealthy: %v\n", reason)
	return cli.ErrReported
}

// showBudget asks the admin socket, because workloads, whose socket the health
// check is made on, are not told what else runs on their node. That it cannot be
// asked makes no agent unhealthy.
func (h *healthcheck) showBudget(ctx context.Context, w io.Writer) error {
	out := printer{w: w}
	conn, err := cli.Dial(ctx, h.admin)
	if err != nil {
		out.printf("Outage budget: not known: %v: set agent.admin_socket_path, and name it here with -adminSocketPath\n", err)
		return out.err
	}
	defer conn.Close() //nolint:errcheck // the process ends
	b, err := operatorv1.NewAgentOperatorClient(conn).OutageBudget(ctx, &operatorv1.OutageBudgetRequest{})
	if err != nil {
		out.printf("Outage budget: not known: %v\n", err)
		return out.err
	}
	out.printBudget(b, time.Now())
	return out.err
}

// printBudget writes the answer for people.
func (p *printer) printBudget(b *operatorv1.OutageBudgetResponse, now time.Time) {
	p.printf("Outage budget: %s\n", b.GetLeft().AsDuration().Round(time.Second))
	switch {
	case b.GetConnected():
		p.printf("  Server:     followed now\n")
	case b.GetAwaySince() != nil:
		p.printf("  Server:     away since %s, for %s\n", b.GetAwaySince().AsTime().Format(time.RFC3339), now.Sub(b.GetAwaySince().AsTime()).Round(time.Second))
	default:
		p.printf("  Server:     not followed yet\n")
	}
	p.printf("  Identities: %d in use, %d warm, %d that a workload waits for, %d made on demand only\n", b.GetInUse(), b.GetWarm(), b.GetMissing(), b.GetCold())
	switch end := b.GetOwnSvidExpiresAt(); {
	case end == nil:
		p.printf("  Own SVID:   none: the agent has not attested\n")
	case b.GetCanReattest():
		p.printf("  Own SVID:   until %s; after it the agent attests anew by itself\n", end.AsTime().Format(time.RFC3339))
	default:
		p.printf("  Own SVID:   until %s; after it the agent cannot come back by itself\n", end.AsTime().Format(time.RFC3339))
	}
	if b.GetPersistSvids() {
		p.printf("  Restart:    what is held is on disk, and served again\n")
	} else {
		p.printf("  Restart:    during an outage takes it all: agent.persist_svids is not set\n")
	}
}
