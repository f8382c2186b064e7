package fleet

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/credence-id/credence/pkg/agent/feed"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

// over sends the message through the codec of a connection.
func over(t *testing.T, w *wire, m *feedv1.WatchResponse) *feedv1.WatchResponse {
	t.Helper()
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	out := &feedv1.WatchResponse{}
	// In two pieces, as the network may have it.
	data := mem.BufferSlice{mem.SliceBuffer(raw[:len(raw)/2]), mem.SliceBuffer(raw[len(raw)/2:])}
	if err := w.Unmarshal(data, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func upsert(id string, revision uint64) *feedv1.EntryVersion {
	return &feedv1.EntryVersion{Entry: &types.Entry{Id: id, Hint: fmt.Sprint(revision)}, Revision: revision}
}

// TestCacheKeepsTheDigest holds two agents of one table, whose changes differ,
// against maps.
func TestCacheKeepsTheDigest(t *testing.T) {
	t.Parallel()
	table := newTable()
	for seed := range uint64(2) {
		r := rand.New(rand.NewPCG(1, seed))
		w := newWire(table)
		c := connected{newCache(table, func(*feedv1.BundleState) {}), w}
		model := map[string]uint64{}
		for revision := uint64(1); revision < 200; revision++ {
			d := &feedv1.Delta{Revision: revision}
			again := revision%50 == 0
			if again { // All that is not sent again is gone.
				for b := range uint32(feedv1.Buckets) {
					d.Resync = append(d.Resync, b)
				}
				clear(model)
			}
			for range r.IntN(20) {
				id := fmt.Sprintf("entry-%d", r.IntN(2000))
				if r.IntN(4) == 0 {
					d.Removes = append(d.Removes, id)
					delete(model, id)
				}
			}
			for range r.IntN(20) {
				id := fmt.Sprintf("entry-%d", r.IntN(2000))
				d.Upserts = append(d.Upserts, upsert(id, revision))
				model[id] = revision
			}
			if err := c.Apply(over(t, w, &feedv1.WatchResponse{Step: &feedv1.WatchResponse_Delta{Delta: d}}).GetDelta()); err != nil {
				t.Fatal(err)
			}
			if !again && revision%7 != 0 {
				continue
			}
			var sums [feedv1.Buckets]uint64
			for id, rev := range model {
				sums[feedv1.Bucket(id)] ^= feedv1.Sum(id, rev)
			}
			if err := c.Synced(&feedv1.Synced{StoreId: "s", Revision: revision, Digest: feedv1.Digest(&sums)}); err != nil {
				t.Fatalf("agent %d: %v", seed, err)
			}
			if c.size() != len(model) {
				t.Fatalf("agent %d holds %d entries, want %d", seed, c.size(), len(model))
			}
		}
	}
}

func TestCacheNoticesWhatIsMissing(t *testing.T) {
	t.Parallel()
	table := newTable()
	c := connected{newCache(table, func(*feedv1.BundleState) {}), newWire(table)}
	var sums [feedv1.Buckets]uint64
	sums[feedv1.Bucket("lost")] = feedv1.Sum("lost", 1)
	if err := c.Synced(&feedv1.Synced{StoreId: "s", Revision: 1, Digest: feedv1.Digest(&sums)}); !errors.Is(err, feed.ErrDiverged) {
		t.Errorf("Synced: %v, want ErrDiverged", err)
	}
	if o := c.Open(); o.GetStoreId() != "" || len(o.GetBuckets()) != 0 {
		t.Errorf("the next Open is %v, want an empty one", o)
	}
}

// TestWireIsProtobuf: all but the entries of a Delta is as the generated code
// has it.
func TestWireIsProtobuf(t *testing.T) {
	t.Parallel()
	w := newWire(newTable())
	for _, m := range []*feedv1.WatchResponse{
		{},
		{Step: &feedv1.WatchResponse_Synced{Synced: &feedv1.Synced{StoreId: "s", Revision: 9, Digest: bytes.Repeat([]byte{7}, 32)}}},
		{Step: &feedv1.WatchResponse_Delta{Delta: &feedv1.Delta{
			Revision: 4, Resync: []uint32{1, 200}, Removes: []string{"a"}, More: true, RemovedBundles: []string{"b.test"},
			Bundles: []*feedv1.BundleState{{Bundle: &types.Bundle{TrustDomain: "c.test"}, Revision: 3}},
			Upserts: []*feedv1.EntryVersion{upsert("x", 4), upsert("y", 4)},
		}}},
	} {
		got := over(t, w, m)
		if want := len(m.GetDelta().GetUpserts()); len(w.upserts) != want {
			t.Errorf("%d entries were read, want %d", len(w.upserts), want)
		}
		if d := m.GetDelta(); d != nil {
			d.Upserts = nil
		}
		if diff := cmp.Diff(m, got, protocmp.Transform()); diff != "" {
			t.Error(diff)
		}
	}
	if err := w.Unmarshal(mem.BufferSlice{mem.SliceBuffer{0x0a, 0x05, 0x1a}}, &feedv1.WatchResponse{}); err == nil {
		t.Error("a message that is cut short was taken")
	}
}
