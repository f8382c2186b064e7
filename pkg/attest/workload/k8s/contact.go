package k8s

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/telemetry"
)

// contact is how it stands between a watcher and the API server.
type contact struct {
	what string
	log  *slog.Logger
	// patient: the kubelet is asked while the API server refuses.
	patient bool
	// changed is called after each change.
	changed func()

	mu sync.Mutex
	contactState
}

type contactState struct {
	live   bool      // what is held is up to date
	ever   bool      // it was, once
	err    error     // why not, if it is not
	lostAt time.Time // since when not; zero if never live
}

func (c *contact) state() contactState {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.contactState
}

// age is for how long nothing has been heard.
func (c *contact) age(now time.Time) time.Duration {
	s := c.state()
	if s.live || s.lostAt.IsZero() {
		return 0
	}
	return now.Sub(s.lostAt)
}

// made is told when the API server answers.
func (c *contact) made(ctx context.Context) {
	c.mu.Lock()
	was := c.contactState
	c.contactState = contactState{live: true, ever: true}
	c.mu.Unlock()
	switch {
	case was.live:
		return
	case was.lostAt.IsZero():
		c.log.InfoContext(ctx, "following the API server", telemetry.Name, c.what)
	default:
		c.log.InfoContext(ctx, "following the API server again", telemetry.Name, c.what, telemetry.Away, time.Since(was.lostAt).Round(time.Millisecond))
	}
	c.changed()
}

// failed is told when it does not, and why; nil is for a watch that has only
// ended.
func (c *contact) failed(ctx context.Context, err error, retry time.Duration) {
	if err == nil {
		return
	}
	c.mu.Lock()
	if c.lostAt.IsZero() {
		c.lostAt = time.Now()
	}
	c.live, c.err = false, err
	away, ever := time.Since(c.lostAt), c.ever
	c.mu.Unlock()
	log := c.log.With(telemetry.Name, c.what, telemetry.Away, away.Round(time.Millisecond), telemetry.Retry, retry.Round(time.Millisecond), telemetry.Err, err)
	switch {
	case c.patient && denied(err):
		log.InfoContext(ctx, "the API server does not let the agent watch, the kubelet is asked instead")
	case ever:
		log.WarnContext(ctx, "cannot follow the API server, what is known from it is used")
	default:
		log.WarnContext(ctx, "cannot follow the API server, nothing is known from it yet")
	}
	c.changed()
}
