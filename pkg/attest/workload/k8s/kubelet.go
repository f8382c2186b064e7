package k8s

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/telemetry"
)

// refreshAfter is how old what the kubelet said may get while it is all there is
// and something has been said of it: nobody tells of changes. Without that it is
// asked only when a workload asks.
const refreshAfter = 30 * time.Second

// kubelet gets all pods of this node, for all who wait at once.
type kubelet struct {
	client  *client
	every   time.Duration
	apply   func([]*pod, time.Time)
	inUse   func() bool
	log     *slog.Logger
	metrics *metrics

	demand chan struct{} // capacity 1

	mu sync.Mutex
	// guarded by mu:

	asked time.Time     // when the last request began
	err   error         // its outcome
	done  chan struct{} // closed when there is another one
}

func newKubelet(k *kubelet) *kubelet {
	k.demand, k.done = make(chan struct{}, 1), make(chan struct{})
	return k
}

// Run asks whenever somebody waits, until ctx ends.
func (k *kubelet) Run(ctx context.Context) error {
	refresh := time.NewTimer(refreshAfter)
	defer refresh.Stop()
	for {
		select {
		case <-k.demand:
		case <-refresh.C:
			if !k.inUse() {
				continue // the next demand sets the timer again
			}
		case <-ctx.Done():
			return nil
		}
		last, _, _ := k.outcome()
		pace := time.NewTimer(k.every - time.Since(last))
		select {
		case <-pace.C:
		case <-ctx.Done():
			pace.Stop()
			return nil
		}
		k.ask(ctx)
		refresh.Reset(refreshAfter)
	}
}

// ask makes one request and lets everyone know.
func (k *kubelet) ask(ctx context.Context) {
	began := time.Now()
	var list struct {
		Items []podObject `json:"items"`
	}
	err := k.client.list(ctx, "/pods", acceptJSON, &list)
	k.metrics.requests.Inc()
	if err == nil {
		all := make([]*pod, 0, len(list.Items))
		for i := range list.Items {
			if list.Items[i].Metadata.UID != "" {
				all = append(all, newPod(&list.Items[i]))
			}
		}
		k.apply(all, began)
	}
	k.mu.Lock()
	failedBefore := k.err != nil
	k.asked, k.err = began, err
	select { // who has asked meanwhile is about to see this, and asks again if it will not do
	case <-k.demand:
	default:
	}
	close(k.done)
	k.done = make(chan struct{})
	k.mu.Unlock()
	switch {
	case err != nil && !failedBefore && ctx.Err() == nil:
		k.log.WarnContext(ctx, "the kubelet does not say which pods there are", telemetry.Err, err)
	case err == nil && failedBefore:
		k.log.InfoContext(ctx, "the kubelet says again which pods there are")
	}
}

// outcome is that of the last request: when it began, and the error. The channel
// is closed when there is another one.
func (k *kubelet) outcome() (asked time.Time, err error, done <-chan struct{}) { //nolint:staticcheck // ST1008: the error is a part of the outcome
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.asked, k.err, k.done
}

// want asks for another request.
func (k *kubelet) want() {
	select {
	case k.demand <- struct{}{}:
	default: // somebody has
	}
}
