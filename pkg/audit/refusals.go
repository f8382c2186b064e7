package audit

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// MaxRefused is how many callers' refusals are told apart at a time; those
	// of others are counted together.
	MaxRefused = 64
	// refusedEvery is how often a caller who goes on being refused is recorded.
	refusedEvery = time.Second
)

const keyCount = "refused_calls"

// Refusals records refusals that anybody can bring about, as often as they like:
// a caller's first at once, and what follows in one record a second, with the
// number of calls it stands for. K tells callers apart. What was counted is
// recorded by [Refusals.Run]. A nil *Refusals is valid and records nothing. It is
// safe for concurrent use.
type Refusals[K comparable] struct {
	log   *Log
	begun chan struct{} // something is to be counted, after a quiet time

	mu sync.Mutex
	// guarded by mu:
	callers map[K]*refused
	others  *refused // beyond MaxRefused
}

// refused is one caller, who was refused in this second or the one before.
type refused struct {
	calls int // not recorded yet
	last  Event
	err   error
}

// NewRefusals returns one that writes to log, which may be nil. It starts
// nothing.
func NewRefusals[K comparable](log *Log) *Refusals[K] {
	return &Refusals[K]{log: log, begun: make(chan struct{}, 1), callers: make(map[K]*refused)}
}

// Record records that the caller was refused, or counts it for the next record.
func (r *Refusals[K]) Record(ctx context.Context, caller K, e Event, err error) {
	if r == nil || r.log == nil {
		return
	}
	if r.count(caller, e, err) {
		r.log.Record(ctx, e, err)
	}
}

// count says whether the refusal is the caller's first.
func (r *Refusals[K]) count(caller K, e Event, err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	in := r.callers[caller]
	switch {
	case in != nil:
	case len(r.callers) < MaxRefused:
		r.callers[caller] = &refused{}
		select {
		case r.begun <- struct{}{}:
		default:
		}
		return true
	case r.others == nil:
		r.others = &refused{}
		fallthrough
	default:
		in = r.others
	}
	in.calls++
	in.last, in.err = e, err
	return false
}

// Run records once a second what was counted, until ctx ends; then it records the
// rest and returns nil. While nobody is refused it sleeps.
func (r *Refusals[K]) Run(ctx context.Context) error {
	timer := time.NewTimer(refusedEvery)
	defer timer.Stop()
	for {
		select {
		case <-r.begun:
			timer.Reset(refusedEvery)
		case <-ctx.Done():
			r.flush(context.WithoutCancel(ctx))
			return nil
		}
		for busy := true; busy; timer.Reset(refusedEvery) {
			select {
			case <-timer.C:
				busy = r.flush(ctx)
			case <-ctx.Done():
				busy = false
			}
		}
	}
}

// flush records what was counted, forgets who was not refused again, and says
// whether anybody is left.
func (r *Refusals[K]) flush(ctx context.Context) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for caller, in := range r.callers {
		if in.calls == 0 {
			delete(r.callers, caller)
			continue
		}
		r.write(ctx, in)
	}
	if in := r.others; in != nil {
		in.last = Event{Action: in.last.Action, Caller: "others", Subject: in.last.Subject}
		r.write(ctx, in)
		r.others = nil
	}
	return len(r.callers) > 0
}

// write records one caller's refusals. It is called with mu held.
func (r *Refusals[K]) write(ctx context.Context, in *refused) {
	e := in.last
	e.Attrs = append(append([]slog.Attr(nil), e.Attrs...), slog.Int(keyCount, in.calls))
	r.log.Record(ctx, e, in.err)
	*in = refused{}
}
