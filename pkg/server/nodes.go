package server

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/audit"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/telemetry"
)

// watchNodes removes agents whose nodes, or pods, are gone, as far as their node attestors
// can see that. Every server does; of those that see the same the first removes
// the agent, and the log tells the others.
func (k *control) watchNodes(ctx context.Context) error {
	var watching sync.WaitGroup
	for name, w := range k.watchers {
		watching.Go(func() {
			err := w.Watch(ctx, agentsOf{k, name})
			if err != nil && ctx.Err() == nil {
				k.log.ErrorContext(ctx, "nodes are not watched any more", telemetry.AttestationType, name, telemetry.Err, err)
			}
		})
	}
	watching.Wait()
	<-ctx.Done()
	return ctx.Err()
}

// agentsOf are the agents of one method. It is node.Agents.
type agentsOf struct {
	*control

	method string
}

// With is node.Agents.
func (a agentsOf) With(ctx context.Context, selectors attest.Selectors) ([]node.Known, error) {
	if err := a.fresh.wait(ctx); err != nil {
		return nil, err
	}
	banned := false
	filter := registry.AgentFilter{AttestationType: a.method, Selectors: selectors, SelectorMatch: registry.MatchSuperset, Banned: &banned}
	var out []node.Known
	for after, more := "", true; more; more = after != "" {
		var page []*registry.Agent
		page, after = a.index.ListAgents(filter, after, registry.MaxPage)
		for _, agent := range page {
			out = append(out, node.Known{ID: agent.ID, Selectors: agent.Selectors})
		}
	}
	return out, nil
}

// Remove is node.Agents.
func (a agentsOf) Remove(ctx context.Context, id spiffeid.ID, reason string) error {
	done := a.audit.Begin(ctx, audit.Event{
		Action: "agent.delete", CallerKind: "server", Subject: id.String(),
		Attrs: []slog.Attr{slog.String(telemetry.AttestationType, a.method), slog.String(telemetry.Reason, reason)},
	})
	err := a.registry.DeleteAgent(ctx, id)
	done(err)
	if errors.Is(err, registry.ErrNotFound) {
		return nil // Another server was faster.
	}
	if err != nil {
		return err
	}
	a.log.InfoContext(ctx, "removed an agent whose node or pod is gone", telemetry.AgentID, id.String(), telemetry.Reason, reason)
	return nil
}
