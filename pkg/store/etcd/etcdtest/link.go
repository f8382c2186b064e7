package etcdtest

import (
	"strings"
	"testing"
	"time"
)

// Link is one client's way to a cluster: a TCP proxy for each member. Cutting it
// leaves other clients alone.
type Link struct {
	scheme  string
	proxies []*proxy
	gates   []*gate
}

// NewLink returns a way to the members at the endpoints.
func NewLink(tb testing.TB, endpoints ...string) *Link {
	tb.Helper()
	l := &Link{}
	for _, e := range endpoints {
		scheme, host, _ := strings.Cut(e, "://")
		l.scheme = scheme
		g := newGate()
		p := newProxy(tb, false, func(string) (bool, <-chan struct{}) { return g.state() })
		p.set(host)
		l.proxies, l.gates = append(l.proxies, p), append(l.gates, g)
	}
	return l
}

// Endpoints are those that the client uses.
func (l *Link) Endpoints() []string {
	out := make([]string, len(l.proxies))
	for i, p := range l.proxies {
		out[i] = l.scheme + "://" + p.address()
	}
	return out
}

// Cut lets nothing through to the members, or to all if none is named:
// connections stay open and hang, new ones do too.
func (l *Link) Cut(members ...int) { l.each(members, func(i int) { l.gates[i].set(true) }) }

// Heal lets everything through again, also what was held back.
func (l *Link) Heal(members ...int) { l.each(members, func(i int) { l.gates[i].set(false) }) }

// Drop closes the connections to the members, or to all. What was sent and not
// answered is lost with them; new connections are made as before.
func (l *Link) Drop(members ...int) { l.each(members, func(i int) { l.proxies[i].dropAll() }) }

// Slow makes each piece of what the members answer late.
func (l *Link) Slow(delay time.Duration, members ...int) {
	l.each(members, func(i int) { l.proxies[i].slow(delay) })
}

func (l *Link) each(members []int, do func(i int)) {
	for i := range l.proxies {
		if len(members) == 0 {
			do(i)
		}
	}
	for _, i := range members {
		do(i)
	}
}
