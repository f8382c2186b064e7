package integration

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// pushed is how long a change may take from the call that makes it to the
// workload. It is far above what docs/performance.md measures, and far below
// what polling needs.
const pushed = 2 * time.Second

// What an operator changes is on the workload's open stream before long: a new
// entry, a changed one, and that there is none any more.
func TestChangesArePushedToAnOpenStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "push")
	s := w.startServer(serverOptions{})
	a := w.startAgent(s, "a", agentOptions{})
	web, api := w.id("/web"), w.id("/api")

	refused(t, a.conn)
	first := s.create(w.entry("/web", a.id(), self()))
	stream := streamOf(t, a, web)

	timed := func(what string, change func(), seen func(x509Update) bool) x509Update {
		begin := time.Now()
		change()
		u := stream.untilWithin(pushed, what, seen)
		t.Logf("%s: on the stream after %v", what, u.at.Sub(begin).Round(100*time.Microsecond))
		return u
	}

	// Created.
	var second *types.Entry
	u := timed("created", func() { second = s.create(w.entry("/api", a.id(), self())) },
		func(u x509Update) bool { return u.find(api) != nil })
	u.find(api).verify(t)
	before := u.find(api).leaf

	// Updated: a DNS name, which only a new certificate can have.
	second.DnsNames = []string{"api.push.test"}
	u = timed("updated", func() { second = s.change(second) }, func(u x509Update) bool {
		i := u.find(api)
		return i != nil && slices.Equal(i.leaf.DNSNames, second.GetDnsNames())
	})
	u.find(api).verify(t)
	if u.find(api).leaf.SerialNumber.Cmp(before.SerialNumber) == 0 {
		t.Error("the updated entry has a certificate with the old serial number")
	}

	// Updated: the identity itself.
	second.SpiffeId = apiID(w.id("/api/v2"))
	timed("renamed", func() { second = s.change(second) }, func(u x509Update) bool {
		return u.find(w.id("/api/v2")) != nil && u.find(api) == nil
	})

	// Updated: selectors that are somebody else's, and back.
	second.Selectors = []*types.Selector{{Type: "unix", Value: "uid:4294967294"}}
	timed("taken away", func() { second = s.change(second) }, func(u x509Update) bool { return len(u.svids) == 1 && u.find(web) != nil })

	// Deleted.
	timed("deleted", func() { s.remove(first.GetId()) }, func(u x509Update) bool { return u.err != nil })
	refused(t, a.conn)
}

// A burst of changes arrives whole: nothing of it is lost or comes twice.
func TestABurstOfEntriesArrivesWhole(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "burst")
	s := w.startServer(serverOptions{})
	a := w.startAgent(s, "a", agentOptions{})
	s.create(w.entry("/n/0", a.id(), self()))
	stream := streamOf(t, a, w.id("/n/0"))

	const n = 60
	want := []fmt.Stringer{w.id("/n/0")}
	var ids []string
	for i := 1; i <= n; i++ {
		path := fmt.Sprintf("/n/%d", i)
		ids = append(ids, s.create(w.entry(path, a.id(), self())).GetId())
		want = append(want, w.id(path))
	}
	begin := time.Now()
	stream.has(want...)
	t.Logf("%d entries, one call each: all on the stream %v after the last answer", n, time.Since(begin).Round(time.Millisecond))
	for _, id := range ids {
		s.remove(id)
	}
	stream.has(w.id("/n/0"))
}
