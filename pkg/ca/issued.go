package ca

import (
	"container/heap"
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Issued is what is remembered of an SVID: enough to find what one entry, agent
// or authority has outstanding, and nothing that could be used.
type Issued struct {
	// Kind is "x509" or "jwt".
	Kind string
	// Serial is the certificate's, in decimal, or the token's jti.
	Serial      string
	SPIFFEID    string
	EntryID     string
	AgentID     string
	AuthorityID string
	NotAfter    time.Time
}

// backlog is how many records may wait for the index.
const backlog = 1024

// index holds the unexpired SVIDs that were issued by this process, up to a
// bound. It is fed without waiting: what does not fit is dropped and counted,
// and all of it is lost with the process.
type index struct {
	feed    chan Issued
	dropped atomic.Uint64
	max     int

	mu    sync.Mutex // guards items
	items byNotAfter
}

func newIndex(most int) *index { return &index{feed: make(chan Issued, backlog), max: most} }

func (x *index) add(i Issued) {
	select {
	case x.feed <- i:
	default:
		x.dropped.Add(1)
	}
}

func (x *index) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case i := <-x.feed:
			x.keep(i, time.Now())
		}
	}
}

func (x *index) keep(i Issued, now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for len(x.items) > 0 && !x.items[0].NotAfter.After(now) {
		heap.Pop(&x.items)
	}
	if len(x.items) >= x.max {
		x.dropped.Add(1)
		return
	}
	heap.Push(&x.items, i)
}

// Issued returns the SVIDs that are known to be unexpired now and for which
// match says yes, in no order, and how many records were dropped since the
// start: then the answer may lack some.
func (a *Authority) Issued(now time.Time, match func(Issued) bool) (found []Issued, dropped uint64) {
	x := a.issued
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, i := range x.items {
		if i.NotAfter.After(now) && match(i) {
			found = append(found, i)
		}
	}
	return found, x.dropped.Load()
}

// byNotAfter is a heap with the one that expires first in front.
type byNotAfter []Issued

func (h byNotAfter) Len() int           { return len(h) }
func (h byNotAfter) Less(i, j int) bool { return h[i].NotAfter.Before(h[j].NotAfter) }
func (h byNotAfter) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push is of heap.Interface.
func (h *byNotAfter) Push(x any) { *h = append(*h, x.(Issued)) }

// Pop is of heap.Interface.
func (h *byNotAfter) Pop() any {
	last := len(*h) - 1
	i := (*h)[last]
	(*h)[last] = Issued{}
	*h = (*h)[:last]
	return i
}
