package k8spsat

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/retry"
	"github.com/credence-id/credence/pkg/telemetry"
)

const (
	// lookAgain is when agents of what is gone are looked for once more: an
	// attestation that had seen it has ended by then.
	lookAgain = time.Minute
	// lookLater is when a look that failed is made again.
	lookLater = 30 * time.Second
)

// Watch is node.Watcher. Agents whose node is deleted, or was while nobody
// watched, are removed, and those that are named for their pods when the pod is;
// each is asked for by name before. Where the server may not watch nodes or pods
// it says so once, and tries again each minute: an API server that has just
// started refuses too, before it has read who may what.
func (v *Verifier) Watch(ctx context.Context, agents node.Agents) error {
	var watching sync.WaitGroup
	for _, c := range v.clusters {
		for _, h := range c.homes() {
			watching.Go(func() { newSweep(c, h, agents).run(ctx) })
		}
	}
	watching.Wait()
	return ctx.Err()
}

// home is what agents go with: their nodes, or their pods in one namespace.
type home struct {
	noun string
	// of are the selectors of the agents that have such a home, and uid is the
	// kind of the one that says which.
	of  attest.Selectors
	uid string
	// named is what the paths of their IDs begin with, if they are named for it;
	// others may have one too, and outlive it.
	named string
	// watch is one of Cluster's, and find asks for the home that an agent with
	// these selectors has by name. It returns ErrNotFound.
	watch func(ctx context.Context, there func(uids map[string]bool), gone func(uid string)) error
	find  func(ctx context.Context, selectors attest.Selectors) (uid string, err error)
}

// homes are those that a cluster's agents have.
func (c *cluster) homes() []home {
	out := []home{{
		noun: "node", of: attest.NewSelectors(selector(selCluster, c.name)), uid: selNodeUID, watch: c.api.WatchNodes,
		find: func(ctx context.Context, selectors attest.Selectors) (string, error) {
			machine, err := c.api.Node(ctx, valueOf(selectors, selNodeName))
			return machine.UID, err
		},
	}}
	if !c.byPod {
		return out
	}
	namespaces := make(map[string]bool)
	for _, account := range c.accounts {
		namespace, _, _ := strings.Cut(account, ":")
		if namespaces[namespace] {
			continue
		}
		namespaces[namespace] = true
		out = append(out, home{
			noun: "pod", of: attest.NewSelectors(selector(selCluster, c.name), selector(selNamespace, namespace)), uid: selPodUID,
			named: "/spire/agent/" + Name + "/" + c.name + "/pod/",
			watch: func(ctx context.Context, there func(map[string]bool), gone func(string)) error {
				return c.api.WatchPods(ctx, namespace, there, gone)
			},
			find: func(ctx context.Context, selectors attest.Selectors) (string, error) {
				pod, err := c.api.Pod(ctx, namespace, valueOf(selectors, selPodName))
				return pod.UID, err
			},
		})
	}
	return out
}

// sweep removes the agents of a cluster whose homes are gone.
type sweep struct {
	*cluster
	home

	agents node.Agents
	wake   chan struct{} // has room for one

	mu sync.Mutex
	// there are the homes as they were listed, until they are compared with the
	// agents; guarded by mu.
	there *map[string]bool
	// due has, by the UID of a home, when its agents are to be looked for;
	// guarded by mu. It has no more than the homes that have gone in the last
	// minutes.
	due map[string]look
}

// look is one that is due.
type look struct {
	at   time.Time
	last bool // none comes after it
}

func newSweep(c *cluster, h home, agents node.Agents) *sweep {
	return &sweep{cluster: c, home: h, agents: agents, wake: make(chan struct{}, 1), due: make(map[string]look)}
}

// run follows the homes until ctx ends.
func (s *sweep) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var sweeping sync.WaitGroup
	defer sweeping.Wait()
	sweeping.Go(func() { s.sweep(ctx) })
	defer cancel()
	said := false // that it is forbidden
	_ = retry.Forever(ctx, func(ctx context.Context) error {
		begin := time.Now()
		err := s.watch(ctx, s.listed, s.gone)
		said = said && time.Since(begin) <= retry.Most
		return err
	}, func(err error, pause time.Duration) {
		forbidden := errors.Is(err, ErrForbidden)
		switch {
		case !forbidden:
			s.log.WarnContext(ctx, "nodes or pods of the cluster cannot be watched now", telemetry.Kind, s.noun, telemetry.Err, err, telemetry.Retry, pause)
		case !said:
			s.log.WarnContext(ctx, "agents of nodes or pods that are deleted are not removed before their SVIDs end: the server is not allowed to list and watch these; grant that", telemetry.Kind, s.noun, telemetry.Err, err)
		}
		said = forbidden
	})
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

// compare finds agents of homes that are not on the list. One without any home
// that an agent has may be of another cluster, by a mistake in kube_config_file:
// then nothing is removed.
func (s *sweep) compare(ctx context.Context) {
	s.mu.Lock()
	there := s.there
	s.mu.Unlock()
	if there == nil {
		return
	}
	known, err := s.with(ctx, s.of)
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
		uid := valueOf(a.Selectors, s.uid)
		if uid != "" && !(*there)[uid] {
			missing[uid] = true
		}
		same = same || (*there)[uid]
	}
	if len(missing) > 0 && !same {
		s.log.WarnContext(ctx, "none of the agents' nodes or pods is in the cluster: no agent is removed before its SVID ends; is it the cluster that these agents are from?", telemetry.Kind, s.noun, telemetry.Count, len(missing))
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
			s.log.WarnContext(ctx, "agents of a node or pod that is gone cannot be removed now", telemetry.Kind, s.noun, telemetry.Object, uid, telemetry.Err, err, telemetry.Retry, lookLater)
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

// with lists the agents with the selectors that go with their homes.
func (s *sweep) with(ctx context.Context, selectors attest.Selectors) ([]node.Known, error) {
	known, err := s.agents.With(ctx, selectors)
	return slices.DeleteFunc(known, func(a node.Known) bool { return !strings.HasPrefix(a.ID.Path(), s.named) }), err
}

// look removes the agents of one home, if it is gone.
func (s *sweep) look(ctx context.Context, uid string) error {
	if uid == "" {
		return nil // see compare
	}
	known, err := s.with(ctx, attest.NewSelectors(append(slices.Clone(s.of), selector(s.uid, uid))...))
	if err != nil {
		return fmt.Errorf("listing the agents: %w", err)
	}
	var problems []error
	for _, a := range known {
		there, err := s.isThere(ctx, a.Selectors, uid)
		if err == nil && !there {
			err = s.agents.Remove(ctx, a.ID, "its "+s.noun+" "+uid+" is gone from cluster "+s.name)
		}
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// isThere asks the API server whether it has the home of an agent.
func (s *sweep) isThere(ctx context.Context, selectors attest.Selectors, uid string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found, err := s.find(ctx, selectors)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("asking cluster %q for a %s: %w", s.name, s.noun, err)
	}
	return found == uid, nil
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
