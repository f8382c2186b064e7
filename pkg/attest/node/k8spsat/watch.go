package k8spsat

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/telemetry"
)

const (
	// lookAgain is when agents of a node that is gone are looked for once more:
	// an attestation that had seen the node has ended by then.
	lookAgain = time.Minute
	// lookLater is when a look that failed is made again.
	lookLater = 30 * time.Second
	// watchMin and watchMax bound the pauses before a watch that broke is begun
	// again.
	watchMin = time.Second
	watchMax = time.Minute
	// forbiddenMax bounds them where the server may not watch. An API server
	// that has just started says so too, before it has read who may what.
	forbiddenMax = 10 * time.Minute
)

// Watch is node.Watcher. Agents whose node is deleted, or was while nobody
// watched, are removed; each node is asked for by name before. Where the server
// may not watch nodes it says so once, and tries again now and then.
func (v *Verifier) Watch(ctx context.Context, agents node.Agents) error {
	var watching sync.WaitGroup
	for _, c := range v.clusters {
		watching.Go(func() { newSweep(c, agents).run(ctx) })
	}
	watching.Wait()
	return ctx.Err()
}

// sweep removes the agents of a cluster whose nodes are gone.
type sweep struct {
	*cluster

	agents node.Agents
	wake   chan struct{} // has room for one

	mu sync.Mutex
	// there are the nodes as they were listed, until they are compared with the
	// agents; guarded by mu.
	there *map[string]bool
	// due has, by node UID, when agents of that node are to be looked for;
	// guarded by mu. It has no more than the nodes that have gone in the last
	// minutes.
	due map[string]look
}

// look is one that is due.
type look struct {
	at   time.Time
	last bool // none comes after it
}

func newSweep(c *cluster, agents node.Agents) *sweep {
	return &sweep{cluster: c, agents: agents, wake: make(chan struct{}, 1), due: make(map[string]look)}
}

// run follows the nodes until ctx ends.
func (s *sweep) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var sweeping sync.WaitGroup
	defer sweeping.Wait()
	sweeping.Go(func() { s.sweep(ctx) })
	defer cancel()
	pause, said := watchMin, false
	for {
		begin := time.Now()
		err := s.api.WatchNodes(ctx, s.listed, s.gone)
		if ctx.Err() != nil {
			return
		}
		if time.Since(begin) > watchMax {
			pause, said = watchMin, false
		}
		wait := pause*3/4 + rand.N(pause/2) //nolint:gosec // no secret
		longest, forbidden := watchMax, errors.Is(err, ErrForbidden)
		if forbidden {
			longest = forbiddenMax
		}
		pause = min(2*pause, longest)
		switch {
		case !forbidden:
			s.log.WarnContext(ctx, "the cluster's nodes cannot be watched now", telemetry.Err, err, telemetry.Retry, wait)
		case !said:
			s.log.WarnContext(ctx, "agents of nodes that are deleted are not removed before their SVIDs end: the server is not allowed to list and watch nodes; grant that", telemetry.Err, err)
		}
		said = forbidden
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// listed and gone are told by the watch.
func (s *sweep) listed(uids map[string]bool) {
	s.mu.Lock()
	s.there = &uids
	s.mu.Unlock()
	s.poke()
}

func (s *sweep) gone(uid string) {
	s.mu.Lock()
	s.due[uid] = look{at: time.Now()}
	s.mu.Unlock()
	s.poke()
}

func (s *sweep) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// sweep looks whenever it is time to.
func (s *sweep) sweep(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-timer.C:
		}
		s.compare(ctx)
		next := s.lookAll(ctx)
		timer.Stop()
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// compare finds agents of nodes that are not on the list. One without any node
// that an agent is on may be of another cluster, by a mistake in kube_config_file:
// then nothing is removed.
func (s *sweep) compare(ctx context.Context) {
	s.mu.Lock()
	there := s.there
	s.mu.Unlock()
	if there == nil {
		return
	}
	known, err := s.agents.With(ctx, attest.NewSelectors(selector(selCluster, s.name)))
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		// Under a name that is no UID, only so that this is tried again.
		s.due[""] = look{at: time.Now().Add(lookLater), last: true}
		return
	}
	if s.there == there {
		s.there = nil
	}
	missing, same := make(map[string]bool), false
	for _, a := range known {
		uid := valueOf(a.Selectors, selNodeUID)
		if uid != "" && !(*there)[uid] {
			missing[uid] = true
		}
		same = same || (*there)[uid]
	}
	if len(missing) > 0 && !same {
		s.log.WarnContext(ctx, "the cluster has no node that an agent is on: none is removed before its SVID ends; is it the cluster that these agents are from?", telemetry.Count, len(missing))
		return
	}
	for uid := range missing {
		s.due[uid] = look{at: time.Now()}
	}
}

// lookAll makes the looks that are due and returns when the next is; zero if
// there is none.
func (s *sweep) lookAll(ctx context.Context) (next time.Time) {
	now := time.Now()
	for uid, l := range s.dueBy(now) {
		after := look{at: now.Add(lookAgain), last: true}
		if err := s.look(ctx, uid); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "agents of a node that is gone cannot be removed now", telemetry.Node, uid, telemetry.Err, err, telemetry.Retry, lookLater)
			after = look{at: now.Add(lookLater), last: l.last}
		} else if l.last {
			continue
		}
		s.mu.Lock()
		if _, again := s.due[uid]; !again {
			s.due[uid] = after
		}
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.due {
		if next.IsZero() || l.at.Before(next) {
			next = l.at
		}
	}
	return next
}

// dueBy takes the looks out that are due.
func (s *sweep) dueBy(now time.Time) map[string]look {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]look)
	for uid, l := range s.due {
		if !l.at.After(now) {
			out[uid] = l
			delete(s.due, uid)
		}
	}
	return out
}

// look removes the agents of one node, if it is gone.
func (s *sweep) look(ctx context.Context, uid string) error {
	if uid == "" {
		return nil // see compare
	}
	known, err := s.agents.With(ctx, attest.NewSelectors(selector(selCluster, s.name), selector(selNodeUID, uid)))
	if err != nil {
		return fmt.Errorf("listing the agents: %w", err)
	}
	var problems []error
	for _, a := range known {
		there, err := s.nodeIsThere(ctx, valueOf(a.Selectors, selNodeName), uid)
		if err == nil && !there {
			err = s.agents.Remove(ctx, a.ID, "its node "+uid+" is gone from cluster "+s.name)
		}
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// nodeIsThere asks the API server whether it has the node.
func (s *sweep) nodeIsThere(ctx context.Context, name, uid string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	machine, err := s.api.Node(ctx, name)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("asking cluster %q for a node: %w", s.name, err)
	}
	return machine.UID == uid, nil
}

// valueOf is what follows kind and a colon in one of the selectors; empty if
// there is none.
func valueOf(selectors attest.Selectors, kind string) string {
	prefix := kind + ":"
	for _, s := range selectors {
		if len(s.Value) > len(prefix) && s.Value[:len(prefix)] == prefix {
			return s.Value[len(prefix):]
		}
	}
	return ""
}
