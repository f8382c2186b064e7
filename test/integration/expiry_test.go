package integration

import (
	"testing"
	"time"
)

// late is how long after its time an entry may be seen at most.
const late = 1500 * time.Millisecond

// An entry with an expiry vanishes on time: for the operator, and for the
// workload, whose agent does not need the server for that.
func TestAnEntryExpiresOnTime(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		away bool
	}{{"in touch with the server", false}, {"cut off from the server", true}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "expiry")
			s := w.startServer(serverOptions{})
			a := w.startAgent(s, "a", agentOptions{})
			e := w.entry("/brief", a.id(), self())
			expiry := time.Now().Add(5 * time.Second).Truncate(time.Second)
			e.ExpiresAt = expiry.Unix()
			e = s.create(e)
			stream := streamOf(t, a, w.id("/brief"))
			i := stream.last.find(w.id("/brief"))
			t.Logf("the SVID ends %v after the entry", i.leaf.NotAfter.Sub(expiry))
			if test.away {
				s.stop()
			}
			end := stream.ends()
			if off := end.at.Sub(expiry); off < 0 || off > late {
				t.Errorf("the stream ended %v after the entry's expiry, want between 0 and %v", off, late)
			}
			refused(t, a.conn)
			if test.away {
				return
			}
			if left := s.allEntries(); len(left) != 0 {
				t.Errorf("the server lists %v after its expiry", left[e.GetId()])
			}
			// The same entry can be made again.
			e.Id, e.ExpiresAt = "", 0
			s.create(e)
			sees(t, a, w.id("/brief"))
		})
	}
}
