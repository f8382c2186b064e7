package server

import (
	"context"
	"time"

	"github.com/credence-id/credence/pkg/telemetry"
)

// drain asks the agents to go to other servers before this one stops, for at
// most drain_timeout. It takes no time when there are none that could go.
func (k *control) drain(ctx context.Context) {
	timeout := *k.settings.DrainTimeout
	if timeout == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// The last agents that are asked have time to go too.
	err := k.hub.Drain(ctx, drainPace(timeout), nil)
	if err != nil {
		k.log.WarnContext(ctx, "agents have not gone to other servers, and are cut off", telemetry.Err, err)
	}
}

// drainPace is over how much of the time the agents are asked to go.
func drainPace(timeout time.Duration) time.Duration { return timeout / 2 }
