package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"

	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/policy"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/agentapi"
	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// agentPaths is what the SPIFFE IDs of agents begin with. No entry can have one
// of those.
const agentPaths = "/spire/agent/"

func isAgent(id spiffeid.ID) bool { return strings.HasPrefix(id.Path(), agentPaths) }

// indexWait is how long a call waits for the index to hold what it needs.
const indexWait = 10 * time.Second

// gate finds out who calls, for each call anew, and asks the policy.
type gate struct {
	policy policy.Policy
	roots  *roots
	admins []spiffeid.ID
	index  *registry.Index
	agents *agentapi.Authenticator
	// trusted refuses while this server's view of the store is too old to tell
	// what a caller's certificate is worth.
	trusted func(now time.Time) error
	audit   *audit.Log
	// refusals are what callers over TCP, who may be anybody, add to audit.
	refusals *audit.Refusals[sender]
}

// pass is what a call was let in with.
type pass struct {
	caller policy.Caller
	// client is nil for callers on the local socket and those whom the method
	// does not ask who they are.
	client *client
}

// admit decides about one call. A refusal is a *policy.DeniedError or has its
// status on the wire.
func (g *gate) admit(ctx context.Context, method string) (pass, error) {
	p, err := g.identify(ctx, method)
	if err == nil {
		err = g.policy.Decide(method, p.caller)
	}
	if err != nil {
		g.refused(ctx, method, p.caller, err)
	}
	return p, err
}

// refused records a refusal; those of callers over TCP by their number, once a
// second, so that nobody fills the disk by being refused.
func (g *gate) refused(ctx context.Context, method string, c policy.Caller, err error) {
	e := audit.Event{Action: "call.refuse", Caller: c.String(), CallerKind: c.Roles.String(), Subject: method}
	if source, ok := sourceOf(ctx); ok {
		g.refusals.Record(ctx, senderOf(c, source), e, err)
		return
	}
	g.audit.Record(ctx, e, err)
}

// identify says who calls. Whoever proves to be nobody in particular is a Caller
// without roles; an error is for one whose proof is not good.
func (g *gate) identify(ctx context.Context, method string) (pass, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return pass{}, rpcerr.New(codes.Internal, "the connection's peer is not known")
	}
	switch info := p.AuthInfo.(type) {
	case *local:
		return pass{caller: policy.Caller{Roles: policy.Local, Peer: fmt.Sprintf("uid:%d", info.uid)}}, nil
	case *client:
		out := pass{caller: policy.Caller{Peer: p.Addr.String()}}
		if len(info.chain) == 0 || !g.policy.NeedsCaller(method) {
			return out, nil
		}
		out.client = info
		return out, g.name(ctx, &out)
	}
	return pass{}, rpcerr.New(codes.Internal, "the connection is of a kind that is not served")
}

// name fills in who the owner of a client certificate is.
func (g *gate) name(ctx context.Context, p *pass) error {
	id, err := p.client.identify(g.roots, time.Now())
	if err != nil {
		return g.notValidNow(p.client, err)
	}
	if err := g.trusted(time.Now()); err != nil {
		return err
	}
	leaf := p.client.chain[0]
	p.caller.ID, p.caller.Serial = id, leaf.SerialNumber.String()
	if slices.Contains(g.admins, id) {
		p.caller.Roles |= policy.Admin
	}
	// While the store is being read, nobody's entries are known.
	waiting, cancel := context.WithTimeout(ctx, indexWait)
	defer cancel()
	if err := g.index.WaitFor(waiting, 0); err != nil {
		return rpcerr.Hide(err, codes.Unavailable, "the server is still reading its store: try again")
	}
	if isAgent(id) {
		return g.nameAgent(ctx, p)
	}
	g.nameWorkload(&p.caller)
	return nil
}

// nameAgent asks whether the agent may still act. An admin among the agents is
// an admin whatever the answer.
func (g *gate) nameAgent(ctx context.Context, p *pass) error {
	err := g.agents.Authenticate(ctx, p.caller.ID, p.client.chain[0])
	if err == nil {
		p.caller.Roles |= policy.Agent
		p.caller.Agent, _ = g.index.Agent(p.caller.ID)
		return nil
	}
	if p.caller.Is(policy.Admin) {
		return nil
	}
	return err
}

// nameWorkload looks for entries that give their workloads a role.
func (g *gate) nameWorkload(c *policy.Caller) {
	filter := registry.EntryFilter{SPIFFEID: c.ID}
	for after, more := "", true; more; more = after != "" {
		var page []*registry.Entry
		page, after = g.index.ListEntries(filter, after, registry.MaxPage, time.Now())
		for _, e := range page {
			if e.Admin {
				c.Roles |= policy.Admin
			}
			if e.Downstream {
				c.Roles |= policy.Downstream
			}
			if e.Admin || e.Downstream {
				c.Entries = append(c.Entries, e)
			}
		}
	}
}

// again holds a message of a stream that was let in against what is true now:
// the certificate against the bundle, the caller's roles against the policy. An
// agent's record is watched by the hold of its stream.
func (g *gate) again(p pass) error {
	if p.client == nil {
		return nil
	}
	if _, err := p.client.identify(g.roots, time.Now()); err != nil {
		return g.notValidNow(p.client, err)
	}
	return g.trusted(time.Now())
}

// notValidNow refuses a certificate that was good when its connection was made.
// An agent whose SVID has ended is told so in SPIRE's way, on which it attests
// again.
func (g *gate) notValidNow(c *client, err error) error {
	if end := c.chain[0].NotAfter; time.Now().After(end) {
		if v, invalid := g.roots.verify(c.chain, end); invalid == nil && isAgent(v.id) {
			return agentapi.ExpiredError(v.id)
		}
	}
	return rpcerr.New(codes.Unauthenticated, "client certificate is not valid now: %v", err)
}
