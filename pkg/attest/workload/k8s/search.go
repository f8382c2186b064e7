package k8s

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// search is one attempt to say something of a place.
type search struct {
	*Attestor
	at      place
	asked   time.Time // when the kubelet was, for the newest that was looked at
	failed  error     // why it did not answer
	answers int       // of the kubelet, failed ones too
}

// run looks until what it sees will do, or nothing more can come in time.
func (s *search) run(ctx context.Context) (answer, error) {
	for {
		seen := s.pods.look(s.at)
		fresh := !s.asks() || !s.asked.IsZero()
		if fresh && (s.enough(seen) || seen.final) || !s.wait(ctx, seen.news) {
			if seen.verdict == answered {
				return seen.answer, nil // what the kubelet said before, or all but a status that is late
			}
			return answer{}, s.refusal(ctx, seen)
		}
	}
}

// enough: the container's status is waited for only when it can matter.
func (s *search) enough(seen sight) bool {
	switch {
	case seen.verdict == invalid:
		return true
	case seen.verdict != answered:
		return false
	}
	return seen.answer.whole || !s.opts.Needs(seen.answer.selectors, late)
}

// wait returns when there may be more to see, and false when there is nothing to
// wait for any more.
func (s *search) wait(ctx context.Context, news <-chan struct{}) bool {
	var done <-chan struct{}
	if s.asksToo() {
		after := s.asked
		if after.IsZero() {
			after = time.Now().Add(-s.kubelet.every)
		}
		var asked time.Time
		var err error
		if asked, err, done = s.kubelet.outcome(); asked.After(after) {
			s.asked, s.failed = asked, err
			s.answers++
			return ctx.Err() == nil
		}
		if s.answers >= positive(s.cfg.MaxPollAttempts, defaultPollAttempts) {
			return false
		}
		s.kubelet.want()
	}
	select {
	case <-news:
	case <-done:
	case <-ctx.Done():
		return false
	}
	return true
}

var (
	errUnsynced = errors.New("nothing is known of this node's pods yet")
	errUnknown  = errors.New("its pod is not known: it has been deleted long ago, is on another node than node_name (or the variable of node_name_env) says, or is so new that nobody has told of it")
	errDeleted  = errors.New("its pod was deleted; what still runs of it gets nothing")
	errForeign  = errors.New("the status of the pod whose cgroup it is in does not name it, and none of the pod's containers can be starting; was it put there by hand?")
	errNoLabels = errors.New("the labels of its namespace are not known: enable_namespace_labels needs the rights list and watch on namespaces")
)

// refusal says what is missing, and why it could not be had.
func (s *search) refusal(ctx context.Context, seen sight) error {
	var why error
	switch seen.verdict {
	case unsynced:
		why = errUnsynced
	case deleted:
		why = errDeleted
	case foreign:
		why = errForeign
	case noNamespace:
		why = errNoLabels
	case invalid:
		return fmt.Errorf("its pod has facts that no selector can hold: %w", seen.err)
	default:
		why = errUnknown
	}
	for _, c := range s.contacts {
		if st := c.state(); st.err != nil && !seen.final {
			why = fmt.Errorf("%w; %s have not been followed for %s: %w", why, c.what, c.age(time.Now()).Round(time.Second), st.err)
		}
	}
	if s.failed != nil && !seen.final {
		why = fmt.Errorf("%w; and %w", why, s.failed)
	}
	if err := ctx.Err(); err != nil {
		why = fmt.Errorf("%w (%w)", why, err)
	}
	return why
}
