package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// agentPage is how many agents one call asks for.
const agentPage = 1000

// expiresBeforeLayout is how SPIRE's API takes a date.
const expiresBeforeLayout = "2006-01-02 15:04:05 -0700 -07"

func agentList(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var f *agentFilter
	cmd := verb(p, "list", "List attested agents", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		filter, err := f.build()
		if err != nil {
			return err
		}
		agents, err := listAgents(ctx, agentv1.NewAgentClient(conn), filter, nil)
		if err != nil {
			return err
		}
		all := &agentv1.ListAgentsResponse{Agents: agents}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
			out := printer{w: w}
			if len(all.GetAgents()) == 0 {
				out.printf("No attested agents found\n")
				return out.err
			}
			out.printf("Found %s:\n\n", counted(len(all.GetAgents()), "attested agent", "attested agents"))
			for _, a := range all.GetAgents() {
				printAgent(&out, a)
			}
			return out.err
		}, all)
	})
	format = cli.OutputFlag(cmd.Flags())
	f = newAgentFilter(cmd.Flags())
	return cmd
}

// listAgents asks for all agents that a filter lets through, page by page.
func listAgents(ctx context.Context, client agentv1.AgentClient, filter *agentv1.ListAgentsRequest_Filter, mask *types.AgentMask) ([]*types.Agent, error) {
	var all []*types.Agent
	for token := ""; ; {
		page, err := client.ListAgents(ctx, &agentv1.ListAgentsRequest{PageSize: agentPage, PageToken: token, Filter: filter, OutputMask: mask})
		if err != nil {
			return nil, err
		}
		all = append(all, page.GetAgents()...)
		if token = page.GetNextPageToken(); token == "" {
			return all, nil
		}
	}
}

func agentCount(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var f *agentFilter
	cmd := verb(p, "count", "Count attested agents", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		filter, err := f.build()
		if err != nil {
			return err
		}
		resp, err := agentv1.NewAgentClient(conn).CountAgents(ctx, &agentv1.CountAgentsRequest{Filter: &agentv1.CountAgentsRequest_Filter{
			ByAttestationType: filter.GetByAttestationType(), BySelectorMatch: filter.GetBySelectorMatch(), ByBanned: filter.GetByBanned(),
			ByCanReattest: filter.GetByCanReattest(), ByExpiresBefore: filter.GetByExpiresBefore(),
		}})
		if err != nil {
			return err
		}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
			_, err := fmt.Fprintln(w, counted(resp.GetCount(), "attested agent", "attested agents"))
			return err
		}, resp)
	})
	format = cli.OutputFlag(cmd.Flags())
	f = newAgentFilter(cmd.Flags())
	return cmd
}

func agentShow(p cli.Persona) *cobra.Command {
	return oneAgent(p, "show", "Show an attested agent", func(ctx context.Context, c agentv1.AgentClient, id *types.SPIFFEID) (proto.Message, func(*printer), error) {
		a, err := c.GetAgent(ctx, &agentv1.GetAgentRequest{Id: id})
		return a, func(out *printer) {
			out.printf("Found an attested agent given its SPIFFE ID\n\n")
			printAgent(out, a)
			for _, s := range a.GetSelectors() {
				out.printf("Selectors         : %s:%s\n", s.GetType(), s.GetValue())
			}
		}, err
	})
}

func agentBan(p cli.Persona) *cobra.Command {
	return oneAgent(p, "ban", "Ban an agent: it stops serving, and may not attest until it is evicted", func(ctx context.Context, c agentv1.AgentClient, id *types.SPIFFEID) (proto.Message, func(*printer), error) {
		resp, err := c.BanAgent(ctx, &agentv1.BanAgentRequest{Id: id})
		return resp, func(out *printer) { out.printf("Agent banned successfully\n") }, err
	})
}

func agentEvict(p cli.Persona) *cobra.Command {
	return oneAgent(p, "evict", "Forget an agent: it stops serving, and may attest again", func(ctx context.Context, c agentv1.AgentClient, id *types.SPIFFEID) (proto.Message, func(*printer), error) {
		resp, err := c.DeleteAgent(ctx, &agentv1.DeleteAgentRequest{Id: id})
		return resp, func(out *printer) { out.printf("Agent evicted successfully\n") }, err
	})
}

// oneAgent makes a verb about the agent that -spiffeID names.
func oneAgent(p cli.Persona, name, short string, do func(context.Context, agentv1.AgentClient, *types.SPIFFEID) (proto.Message, func(*printer), error)) *cobra.Command {
	var format *cli.Format
	var spiffeID *string
	cmd := verb(p, name, short, func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		if *spiffeID == "" {
			return cli.Hint(errors.New("a SPIFFE ID is required"), "`agent list` shows the agents' SPIFFE IDs")
		}
		id, err := parseID("spiffeID", *spiffeID)
		if err != nil {
			return err
		}
		resp, pretty, err := do(ctx, agentv1.NewAgentClient(conn), id)
		if err != nil {
			return err
		}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
			out := printer{w: w}
			pretty(&out)
			return out.err
		}, resp)
	})
	format = cli.OutputFlag(cmd.Flags())
	spiffeID = cmd.Flags().String("spiffeID", "", "the agent's SPIFFE ID")
	return cmd
}

// printAgent writes an agent with SPIRE's labels, which scripts read.
func printAgent(p *printer, a *types.Agent) {
	p.printf("SPIFFE ID         : %s\n", idText(a.GetId()))
	p.printf("Attestation type  : %s\n", a.GetAttestationType())
	p.printf("Expiration time   : %s\n", time.Unix(a.GetX509SvidExpiresAt(), 0))
	if a.GetBanned() {
		p.printf("Banned            : %t\n", true)
	} else {
		p.printf("Serial number     : %s\n", a.GetX509SvidSerialNumber())
	}
	p.printf("Can re-attest     : %t\n", a.GetCanReattest())
	if a.GetAgentVersion() != "" {
		p.printf("Agent version     : %s\n", a.GetAgentVersion())
	}
	p.printf("\n")
}

// agentFilter are the flags of list and count.
type agentFilter struct {
	selectors                                                       []string
	matchSelectorsOn, attestationType, expiresBefore, banned, again string
}

func newAgentFilter(flags *pflag.FlagSet) *agentFilter {
	f := new(agentFilter)
	flags.StringArrayVar(&f.selectors, "selector", nil, "agents with this type:value; may be repeated")
	flags.StringVar(&f.matchSelectorsOn, "matchSelectorsOn", "superset", "how selectors match: "+matches)
	flags.StringVar(&f.attestationType, "attestationType", "", "agents attested this way, such as join_token")
	flags.StringVar(&f.expiresBefore, "expiresBefore", "", "agents whose SVID expires before (format: \""+expiresBeforeLayout+"\")")
	flags.StringVar(&f.banned, "banned", "", "true: banned agents; false: the others; anything else: all")
	flags.StringVar(&f.again, "canReattest", "", "true: agents that can attest again; false: the others; anything else: all")
	return f
}

func (f *agentFilter) build() (*agentv1.ListAgentsRequest_Filter, error) {
	filter := &agentv1.ListAgentsRequest_Filter{
		ByAttestationType: f.attestationType, ByExpiresBefore: f.expiresBefore,
		ByBanned: optionalBool(f.banned), ByCanReattest: optionalBool(f.again),
	}
	if len(f.selectors) > 0 {
		match, ok := matchNamed(f.matchSelectorsOn, types.SelectorMatch_MatchBehavior_value)
		if !ok {
			return nil, cli.Hint(errors.New("unsupported match behavior"), "-matchSelectorsOn is "+matches)
		}
		selectors, err := parseSelectors(f.selectors, func(text string, err error) error {
			return fmt.Errorf("error parsing selector %q: %w", text, err)
		})
		if err != nil {
			return nil, err
		}
		filter.BySelectorMatch = &types.SelectorMatch{Selectors: selectors, Match: types.SelectorMatch_MatchBehavior(match)}
	}
	if f.expiresBefore != "" {
		if _, err := time.Parse(expiresBeforeLayout, f.expiresBefore); err != nil {
			return nil, cli.Hint(fmt.Errorf("date is not valid: %w", err), "-expiresBefore is a date such as \"2030-01-31 23:59:59 +0000 +00\"")
		}
	}
	return filter, nil
}

// optionalBool is nil for anything but true and false, which SPIRE's flags take
// to mean all agents.
func optionalBool(text string) *wrapperspb.BoolValue {
	switch text {
	case "true", "false":
		return wrapperspb.Bool(text == "true")
	}
	return nil
}
