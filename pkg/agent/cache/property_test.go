package cache_test

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/agent/cachetest"
	"github.com/credence-id/credence/pkg/agent/feed"
	"github.com/credence-id/credence/pkg/attest"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// model is the cache, naively: what the agent holds, and a scan for each
// question.
type model struct {
	held map[string]*feedv1.EntryVersion
}

func (m *model) matches(have attest.Selectors) []string {
	var out []string
	for id, v := range m.held {
		var want []attest.Selector
		for _, s := range v.GetEntry().GetSelectors() {
			want = append(want, attest.Selector{Type: s.GetType(), Value: s.GetValue()})
		}
		all := len(want) > 0
		for _, w := range want {
			all = all && slices.Contains(have, w)
		}
		if all {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

func (m *model) sums() (sums [feedv1.Buckets]uint64) {
	for id, v := range m.held {
		sums[feedv1.Bucket(id)] ^= feedv1.Sum(id, v.GetRevision())
	}
	return sums
}

// TestMatchingAndDigestAgainstAModel runs random changes, resyncs cut short or
// not, and subscriptions that come and go.
func TestMatchingAndDigestAgainstAModel(t *testing.T) {
	t.Parallel()
	values := []string{"a", "b", "c", "d", "e", "f"}
	subset := rapid.SliceOfNDistinct(rapid.SampledFrom(values), 0, 4, rapid.ID)
	rapid.Check(t, func(rt *rapid.T) {
		s := cachetest.New(t, "example.org")
		c := idleCache(t, s)
		m := &model{held: map[string]*feedv1.EntryVersion{}}
		subs := map[int]*cache.Subscription{}
		revision := uint64(0)
		version := func(rt *rapid.T) *feedv1.EntryVersion {
			revision++
			id := fmt.Sprintf("e%d", rapid.IntRange(0, 40).Draw(rt, "id"))
			return &feedv1.EntryVersion{Entry: s.Entry(id, "/x", subset.Draw(rt, "selectors")...), Revision: revision}
		}
		apply := func(d *feedv1.Delta) {
			d.Revision = revision
			if err := c.Apply(d); err != nil {
				rt.Fatal(err)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"upsert": func(rt *rapid.T) {
				d := &feedv1.Delta{}
				for range rapid.IntRange(1, 8).Draw(rt, "n") {
					v := version(rt)
					d.Upserts = append(d.Upserts, v)
					m.held[v.GetEntry().GetId()] = v
				}
				apply(d)
			},
			"again": func(rt *rapid.T) { // the same content at a later revision
				d := &feedv1.Delta{}
				for id, v := range m.held {
					revision++
					again := &feedv1.EntryVersion{Entry: proto.CloneOf(v.GetEntry()), Revision: revision}
					d.Upserts = append(d.Upserts, again)
					m.held[id] = again
					break
				}
				apply(d)
			},
			"remove": func(rt *rapid.T) {
				revision++
				id := fmt.Sprintf("e%d", rapid.IntRange(0, 40).Draw(rt, "id"))
				delete(m.held, id)
				apply(&feedv1.Delta{Removes: []string{id}})
			},
			"resync": func(rt *rapid.T) {
				buckets := rapid.SliceOfNDistinct(rapid.Uint32Range(0, 255), 1, 256, rapid.ID).Draw(rt, "buckets")
				kept := map[string]*feedv1.EntryVersion{}
				var sent []*feedv1.EntryVersion
				for id, v := range m.held {
					if !slices.Contains(buckets, uint32(feedv1.Bucket(id))) {
						kept[id] = v
					} else if rapid.Bool().Draw(rt, "sent again") {
						kept[id] = v
						sent = append(sent, v)
					}
				}
				apply(&feedv1.Delta{Resync: buckets, More: true})
				cut := rapid.IntRange(0, len(sent)).Draw(rt, "cut")
				apply(&feedv1.Delta{Upserts: sent[:cut]})
				if rapid.IntRange(0, 4).Draw(rt, "connection lost") == 0 {
					c.Open() // what was not confirmed is held on
					return
				}
				apply(&feedv1.Delta{Upserts: sent[cut:]})
				m.held = kept
				sums := m.sums()
				if err := c.Synced(&feedv1.Synced{StoreId: "s", Revision: revision, Digest: feedv1.Digest(&sums)}); err != nil {
					rt.Fatal(err)
				}
			},
			"subscribe": func(rt *rapid.T) {
				subs[len(subs)] = c.Subscribe(sel(subset.Draw(rt, "have")...))
			},
			"close": func(rt *rapid.T) {
				for i, sub := range subs {
					sub.Close()
					delete(subs, i)
					break
				}
			},
			"": func(rt *rapid.T) {
				if got, want := c.Sums(), m.sums(); got != want {
					rt.Fatalf("the digest is not that of what is held")
				}
				for _, have := range [][]string{values, values[:3], values[3:], {"a"}, {}} {
					sub := c.Subscribe(sel(have...))
					if diff := gocmp.Diff(m.matches(sel(have...)), sub.MatchedIDs()); diff != "" {
						rt.Fatalf("workload with %v (-want +got):\n%s", have, diff)
					}
					sub.Close()
				}
				for _, sub := range subs {
					if got, want := sub.Latest().Matched, len(sub.MatchedIDs()); got != want {
						rt.Fatalf("an open subscription sees %d entries of %d", got, want)
					}
				}
			},
		})
	})
}

// TestDiverged: an agent that holds something else than the server thinks says
// so, goes on serving, and ends up right.
func TestDiverged(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	c := newCache(t, s)
	s.Put(s.Entry("e1", "/one", "a"), s.Entry("e2", "/two", "a"))
	s.Sync(c)
	sub := c.Subscribe(sel("a"))
	defer sub.Close()
	await(t, sub)
	old := s.Put()
	old.Bundles = append(old.Bundles, cachetest.New(t, "gone.org").Bundle())
	if err := c.Apply(old); err != nil {
		t.Fatal(err)
	}
	s.Remove("e1") // lost on the way
	s.Put(s.Entry("e3", "/three", "a"))
	if err := c.Synced(s.Synced()); !errors.Is(err, feed.ErrDiverged) {
		t.Fatalf("Synced: %v, want ErrDiverged", err)
	}
	if g := sub.Latest(); len(g.Identities) != 2 {
		t.Errorf("%d identities are served while diverged, want both", len(g.Identities))
	}
	o := c.Open()
	if o.GetStoreId() != "" || len(o.GetBuckets()) != 0 || len(o.GetBundles()) != 0 {
		t.Errorf("the next Open is not empty: %v", o)
	}
	s.Sync(c)
	eventually(t, sub, "what the server has", func(g *cache.Grant) bool { return slices.Equal(ids(g), []string{"/two", "/three"}) })
	o = c.Open()
	slices.SortFunc(o.Bundles, func(a, b *feedv1.BundleVersion) int { return cmp.Compare(a.TrustDomain, b.TrustDomain) })
	if len(o.GetBundles()) != 1 || o.GetStoreId() != "cachetest" || len(o.GetBuckets()) != feedv1.Buckets {
		t.Errorf("Open after the resync: store %q, %d buckets, bundles %v", o.GetStoreId(), len(o.GetBuckets()), o.GetBundles())
	}
}

func TestApplyRefusesNonsense(t *testing.T) {
	t.Parallel()
	s := cachetest.New(t, "example.org")
	for name, d := range map[string]*feedv1.Delta{
		"no such bucket":   {Resync: []uint32{256}},
		"entry without ID": {Upserts: []*feedv1.EntryVersion{{Entry: s.Entry("", "/x", "a")}}},
		"no entry":         {Upserts: []*feedv1.EntryVersion{{}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := idleCache(t, s)
			d.Upserts = append(d.Upserts, &feedv1.EntryVersion{Entry: s.Entry("good", "/x", "a")})
			if err := c.Apply(d); err == nil {
				t.Error("accepted")
			}
			if n := len(c.Snapshot(false).GetEntries()); n != 0 {
				t.Errorf("%d entries were applied", n)
			}
		})
	}
}
