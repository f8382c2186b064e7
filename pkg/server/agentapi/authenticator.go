package agentapi

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// Index is the part of registry.Index that this package reads.
type Index interface {
	Agent(id spiffeid.ID) (*registry.Agent, bool)
	// WaitFor blocks until the index has reached the revision.
	WaitFor(ctx context.Context, rev store.Revision) error
}

// Records is the part of registry.Registry that the Authenticator uses.
type Records interface {
	UpdateAgent(ctx context.Context, id spiffeid.ID, change func(*registry.Agent) error) (*registry.Agent, error)
}

// Authenticator decides whether an agent whose certificate was verified may act
// now. All methods may be called concurrently, but for Apply, which has one
// caller.
type Authenticator struct {
	index   Index
	records Records
	fresh   func(context.Context) error

	mu sync.Mutex
	// guarded by mu:
	holds   map[spiffeid.ID]map[*hold]struct{}
	applied store.Revision
}

// hold is one stream of an agent.
type hold struct {
	serial string
	end    context.CancelCauseFunc
}

// NewAuthenticator returns an Authenticator over the index, which is as new as
// the store was at a call of fresh when that returns nil, and the records in the
// store.
func NewAuthenticator(index Index, records Records, fresh func(context.Context) error) *Authenticator {
	return &Authenticator{index: index, records: records, fresh: fresh, holds: make(map[spiffeid.ID]map[*hold]struct{})}
}

// Authenticate says whether the agent may act with the certificate: it is
// attested, not banned, and the certificate is the one it used last or the next
// one, whose first use makes it the only one. A refusal is PermissionDenied with
// SPIRE's PermissionDeniedDetails.
//
// The index may be behind another server that let the agent in or renewed its
// SVID, so a refusal is never given before the index is as new as the store was
// at the call; when it does not get there the error is fresh's, on which nobody
// gives up an identity.
func (a *Authenticator) Authenticate(ctx context.Context, id spiffeid.ID, cert *x509.Certificate) error {
	if time.Now().After(cert.NotAfter) {
		return ExpiredError(id)
	}
	serial := cert.SerialNumber.String()
	agent, err := a.known(id, serial)
	if err != nil {
		if err := a.fresh(ctx); err != nil {
			return fmt.Errorf("looking for what others know of agent %q: %w", id, err)
		}
		if agent, err = a.known(id, serial); err != nil {
			return err
		}
	}
	if serial != agent.NextSerial {
		return nil
	}
	return a.activate(ctx, id, serial)
}

// known is the agent by the index, or why it may not act.
func (a *Authenticator) known(id spiffeid.ID, serial string) (*registry.Agent, error) {
	agent, ok := a.index.Agent(id)
	if !ok {
		return nil, errNotAttested(id)
	}
	return agent, refusal(id, serial, agent, nil)
}

// activate makes the next serial the only one. Calls that come together on a
// new connection all get here, and all but one change nothing.
func (a *Authenticator) activate(ctx context.Context, id spiffeid.ID, serial string) error {
	agent, err := a.records.UpdateAgent(ctx, id, func(agent *registry.Agent) error {
		agent.Used(serial)
		return nil
	})
	if err := refusal(id, serial, agent, err); err != nil {
		return err
	}
	// Later calls on this server must find it done.
	if err := a.reach(ctx, agent.ModRevision); err != nil {
		return fmt.Errorf("waiting for the agent's new serial number: %w", err)
	}
	return nil
}

// reachWait bounds the wait for the index to show what is in the store already.
const reachWait = 10 * time.Second

func (a *Authenticator) reach(ctx context.Context, rev store.Revision) error {
	waiting, cancel := context.WithTimeout(ctx, reachWait)
	defer cancel()
	err := a.index.WaitFor(waiting, rev)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: this server has not seen revision %d within %v", store.ErrUnavailable, rev, reachWait)
	}
	return err
}

// refusal turns what was read, or why it could not be, into the reason why the
// agent may not act, if there is one.
func refusal(id spiffeid.ID, serial string, agent *registry.Agent, err error) error {
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return errNotAttested(id)
	case errors.Is(err, registry.ErrBanned):
		return errBanned(id)
	case err != nil:
		return err
	case agent.Banned:
		return errBanned(id)
	case !agent.Accepts(serial):
		return errNotActive(id, serial)
	}
	return nil
}

// Hold authenticates the agent for the life of a stream. The context it returns
// ends, with the refusal as its cause, at the certificate's NotAfter, and when a
// commit bans or removes the agent or ends the certificate's serial number.
// Whoever sends to the agent looks at the context before each message. release
// is called when the stream is over.
func (a *Authenticator) Hold(ctx context.Context, id spiffeid.ID, cert *x509.Certificate) (_ context.Context, release func(), err error) {
	if err := a.Authenticate(ctx, id, cert); err != nil {
		return nil, nil, err
	}
	ctx, end := context.WithCancelCause(ctx)
	ctx, cancel := context.WithDeadlineCause(ctx, cert.NotAfter, ExpiredError(id))
	h := &hold{serial: cert.SerialNumber.String(), end: end}
	applied := a.add(id, h)
	release = func() {
		a.remove(id, h)
		end(nil)
		cancel()
	}
	// What was applied before the hold was there was not held against it: the
	// index has it in a moment. What comes later is.
	if err = a.reach(ctx, applied); err == nil {
		_, err = a.known(id, h.serial)
	}
	if err != nil {
		release()
		return nil, nil, err
	}
	return ctx, release, nil
}

// add returns the revision up to which commits were applied without the hold.
func (a *Authenticator) add(id spiffeid.ID, h *hold) store.Revision {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.holds[id] == nil {
		a.holds[id] = make(map[*hold]struct{})
	}
	a.holds[id][h] = struct{}{}
	return a.applied
}

func (a *Authenticator) remove(id spiffeid.ID, h *hold) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.holds[id], h)
	if len(a.holds[id]) == 0 {
		delete(a.holds, id)
	}
}

// Apply ends the streams that the commit leaves without authority. It is called
// by the follower of the log, for every commit, in order, before the index has
// it.
func (a *Authenticator) Apply(c *registry.Commit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.applied = c.Revision
	if c.Reset {
		a.reset(c)
		return
	}
	for _, change := range c.Agents {
		a.judge(change.ID, change.Now)
	}
}

// reset holds every stream against the whole content of the store. It is called
// with mu held.
func (a *Authenticator) reset(c *registry.Commit) {
	now := make(map[spiffeid.ID]*registry.Agent, len(a.holds))
	for _, change := range c.Agents {
		if a.holds[change.ID] != nil {
			now[change.ID] = change.Now
		}
	}
	for id := range a.holds {
		a.judge(id, now[id])
	}
}

// judge is called with mu held.
func (a *Authenticator) judge(id spiffeid.ID, now *registry.Agent) {
	var err error
	if now == nil {
		err = registry.ErrNotFound
	}
	for h := range a.holds[id] {
		if err := refusal(id, h.serial, now, err); err != nil {
			h.end(err)
		}
	}
}

// ExpiredError refuses an agent whose certificate has ended.
func ExpiredError(id spiffeid.ID) error {
	return rpcerr.Denied(types.PermissionDeniedDetails_AGENT_EXPIRED, "agent %q SVID is expired", id)
}

func errNotAttested(id spiffeid.ID) error {
	return rpcerr.Denied(types.PermissionDeniedDetails_AGENT_NOT_ATTESTED, "agent %q is not attested", id)
}

func errBanned(id spiffeid.ID) error {
	return rpcerr.Denied(types.PermissionDeniedDetails_AGENT_BANNED, "agent %q is banned", id)
}

func errNotActive(id spiffeid.ID, serial string) error {
	return rpcerr.Denied(types.PermissionDeniedDetails_AGENT_NOT_ACTIVE, "agent %q: the SVID with serial number %s is not active", id, serial)
}
