package feedapi_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/pkg/entitle"
	"github.com/credence-id/credence/pkg/registry"
	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/server/apitest"
	"github.com/credence-id/credence/pkg/server/feedapi"
)

func assertEnds(t *testing.T, err error, code codes.Code, want types.PermissionDeniedDetails_Reason) {
	t.Helper()
	if status.Code(err) != code || reason(err) != want {
		t.Errorf("the stream ended with %v (%v), want %s (%v)", err, reason(err), code, want)
	}
}

// TestS18_StalledReader: an agent that does not read is let go of at once all
// the same, and reads nothing that was made after its ban.
func TestS18_StalledReader(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	agent := w.NewAgent(t, "one")
	m := newMirror()
	s := watch(t.Context(), t, w.Dial(t, &agent.Cert), m)
	until(t, s, m, m.isSynced)
	// Fill what gRPC takes without the agent reading, until the sender hangs.
	n := 0
	fill := func(count int) []*registry.Entry {
		var batch []*registry.Entry
		for range count {
			n++
			e := w.Entry(t, agent.ID, fmt.Sprint("/e/", n))
			e.Hint = strings.Repeat("x", 1000) + fmt.Sprint(n)
			batch = append(batch, e)
		}
		return w.Create(t, batch...)
	}
	for range 20 {
		fill(100)
	}
	if err := w.Registry.BanAgent(t.Context(), agent.ID); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for len(w.Hub.Agents()) > 0 {
		if time.Since(begin) > time.Second {
			t.Fatal("the hub still has the stream 1s after the ban")
		}
		time.Sleep(time.Millisecond)
	}
	after := fill(50)
	var err error
	for err == nil {
		err = m.step(s)
	}
	assertEnds(t, err, codes.PermissionDenied, types.PermissionDeniedDetails_AGENT_BANNED)
	if len(m.entries) == n-len(after) {
		t.Error("the agent got all that was made before its ban: this test did not stop the stream")
	}
	for _, e := range after {
		if _, ok := m.entries[e.ID]; ok {
			t.Errorf("the agent got %s, which was made after its ban", e.ID)
		}
	}
}

// TestS25_StreamEndsAtNextSerial: the first use of the next SVID ends the stream
// that was opened with the one before.
func TestS25_StreamEndsAtNextSerial(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	agent := w.NewAgent(t, "one")
	conn := w.Dial(t, &agent.Cert)
	m := newMirror()
	s := watch(t.Context(), t, conn, m)
	until(t, s, m, m.isSynced)
	out, err := agentv1.NewAgentClient(conn).RenewAgent(t.Context(), &agentv1.RenewAgentRequest{
		Params: &agentv1.AgentX509SVIDParams{Csr: apitest.CSR(t, agent.Key, x509.CertificateRequest{})},
	})
	if err != nil {
		t.Fatal(err)
	}
	e := w.Create(t, w.Entry(t, agent.ID, "/a"))[0]
	until(t, s, m, func() bool { _, ok := m.entries[e.ID]; return ok }) // Renewing ends nothing.

	next := agent.Cert
	next.Certificate = out.GetSvid().GetCertChain()
	handover := m.clone()
	after := watch(t.Context(), t, w.Dial(t, &next), handover)
	assertEnds(t, m.step(s), codes.PermissionDenied, types.PermissionDeniedDetails_AGENT_NOT_ACTIVE)
	resp, err := after.Recv()
	if err != nil || resp.GetSynced() == nil {
		t.Errorf("the new stream with the old one's cursor: %v, %v, want Synced at once", resp, err)
	}
}

// TestStreamEndsAtNotAfter of the certificate it was opened with.
func TestStreamEndsAtNotAfter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := apitest.New(t, apitest.Options{AgentTTL: 10 * time.Minute})
		agent := w.NewAgent(t, "one")
		begin := time.Now()
		m := newMirror()
		s := watch(t.Context(), t, w.Dial(t, &agent.Cert), m)
		until(t, s, m, m.isSynced)
		assertEnds(t, m.step(s), codes.PermissionDenied, types.PermissionDeniedDetails_AGENT_EXPIRED)
		if took := time.Since(begin); took < 10*time.Minute-time.Second || took > 10*time.Minute+time.Second {
			t.Errorf("the stream lived %s, want the certificate's 10m", took)
		}
	})
}

// TestOpenTimeout: whoever opens a stream has to say something.
func TestOpenTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := apitest.New(t, apitest.Options{})
		s, err := feedv1.NewFeedClient(w.Dial(t, &w.NewAgent(t, "one").Cert)).Watch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		_, err = s.Recv()
		assertEnds(t, err, codes.DeadlineExceeded, 0)
		if took := time.Since(begin); took > 11*time.Second {
			t.Errorf("after %s", took)
		}
	})
}

// TestServerBehind: a server that has seen less of the log than the agent waits
// for it, for a while.
func TestServerBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		// A mutex that the bubble's clock does not stand still for.
		pass := make(chan struct{}, 1)
		pass <- struct{}{}
		w := apitest.New(t, apitest.Options{CatchUp: 5 * time.Second, Hold: func(*registry.Commit) {
			<-pass
			pass <- struct{}{}
		}})
		agent := w.NewAgent(t, "one")
		conn := w.Dial(t, &agent.Cert)
		m := newMirror()
		until(t, watch(t.Context(), t, conn, m), m, m.isSynced)

		<-pass
		results := w.Registry.CreateEntries(t.Context(), []*registry.Entry{w.Entry(t, agent.ID, "/a")})
		if results[0].Err != nil {
			t.Fatal(results[0].Err)
		}
		ahead := m.clone()
		ahead.revision = uint64(results[0].Entry.ModRevision)
		ahead.set(results[0].Entry.ID, ahead.revision)
		for _, tc := range []struct {
			alternatives uint32
			lastResort   bool
			want         time.Duration
		}{{0, false, 5 * time.Second}, {2, false, time.Second}, {2, true, 5 * time.Second}} {
			open := ahead.open()
			open.Alternatives, open.LastResort = tc.alternatives, tc.lastResort
			begin := time.Now()
			_, err := watchWith(t.Context(), t, conn, open).Recv()
			assertEnds(t, err, codes.Unavailable, 0)
			if took := time.Since(begin); took != tc.want {
				t.Errorf("%+v: the server gave up after %s", tc, took)
			}
		}

		s := watch(t.Context(), t, conn, ahead)
		time.Sleep(time.Second)
		pass <- struct{}{}
		resp, err := s.Recv()
		if err != nil || resp.GetSynced() == nil {
			t.Errorf("once the server has caught up: %v, %v, want Synced", resp, err)
		}
	})
}

// TestServerLoads: an agent waits for a server that has not read its store yet,
// but not for long if it has another one.
func TestServerLoads(t *testing.T) {
	t.Parallel()
	td := spiffeid.RequireTrustDomainFromString("example.org")
	hub, err := feedapi.New(feedapi.Config{TrustDomain: td, Graph: entitle.New(td), Index: registry.NewIndex(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	conn := (&model{t: t, hub: hub, agent: spiffeid.RequireFromPath(td, "/spire/agent/x/1")}).serve()
	patient := watchWith(t.Context(), t, conn, &feedv1.Open{})
	begin := time.Now()
	_, err = watchWith(t.Context(), t, conn, &feedv1.Open{Alternatives: 2}).Recv()
	assertEnds(t, err, codes.Unavailable, 0)
	if took := time.Since(begin); took < time.Second || took > 5*time.Second {
		t.Errorf("who has another server was sent there after %s, want 1s", took)
	}
	hub.Publish(&registry.Commit{StoreID: "loaded", Revision: 1}, entitle.Touched{})
	m := newMirror()
	until(t, patient, m, m.isSynced)
}

// TestForeignCursor: a cursor of another store, or of a history of this one that
// was undone, is worth nothing: the same revision can be another entry there.
func TestForeignCursor(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	agent := w.NewAgent(t, "one")
	e := w.Create(t, w.Entry(t, agent.ID, "/a"))[0]
	conn := w.Dial(t, &agent.Cert)
	m := newMirror()
	until(t, watch(t.Context(), t, conn, m), m, m.isSynced)

	for name, change := range map[string]func(*mirror){
		"another store":  func(m *mirror) { m.storeID = "another" },
		"undone history": func(m *mirror) { m.revision += 1000 },
	} {
		got := m.clone()
		change(got)
		s := watch(t.Context(), t, conn, got)
		resp, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		upserts := resp.GetDelta().GetUpserts()
		if len(upserts) != 1 || upserts[0].GetEntry().GetId() != e.ID || len(resp.GetDelta().GetBundles()) != 1 {
			t.Errorf("%s: first message %v, want everything", name, resp)
		}
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	agent := w.NewAgent(t, "one")
	conn := w.Dial(t, &agent.Cert)
	m := newMirror()
	s := watch(t.Context(), t, conn, m)
	until(t, s, m, m.isSynced)
	w.Hub.Stop()
	assertEnds(t, m.step(s), codes.Unavailable, 0)
	_, err := watch(t.Context(), t, conn, m).Recv()
	assertEnds(t, err, codes.Unavailable, 0)
}

// TestStopWaitsForNoOpen: neither for an agent that has said nothing yet, nor for
// one that waits until this server has seen what it has.
func TestStopWaitsForNoOpen(t *testing.T) {
	t.Parallel()
	for name, silent := range map[string]bool{"silent": true, "ahead": false} {
		synctest.Test(t, func(t *testing.T) {
			pass := make(chan struct{}, 1)
			pass <- struct{}{}
			w := apitest.New(t, apitest.Options{CatchUp: 5 * time.Second, Hold: func(*registry.Commit) {
				<-pass
				pass <- struct{}{}
			}})
			agent := w.NewAgent(t, "one")
			conn := w.Dial(t, &agent.Cert)
			m := newMirror()
			until(t, watch(t.Context(), t, conn, m), m, m.isSynced)
			<-pass
			results := w.Registry.CreateEntries(t.Context(), []*registry.Entry{w.Entry(t, agent.ID, "/a")})
			if results[0].Err != nil {
				t.Fatal(results[0].Err)
			}
			m.revision = uint64(results[0].Entry.ModRevision)
			var s feedv1.Feed_WatchClient
			if silent {
				var err error
				if s, err = feedv1.NewFeedClient(conn).Watch(t.Context()); err != nil {
					t.Fatal(err)
				}
			} else {
				s = watch(t.Context(), t, conn, m)
			}
			time.Sleep(time.Second)
			begin := time.Now()
			w.Hub.Stop()
			if took := time.Since(begin); took != 0 {
				t.Errorf("%s: stopped after %s", name, took)
			}
			_, err := s.Recv()
			assertEnds(t, err, codes.Unavailable, 0)
			pass <- struct{}{}
		})
	}
}

// TestS21_StreamsLeaveNothing: Stop waits for every goroutine of the hub, so it
// would not return if a stream had left one.
func TestS21_StreamsLeaveNothing(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	patient, hasty := w.Dial(t, &w.NewAgent(t, "one").Cert), w.Dial(t, &w.NewAgent(t, "two").Cert)
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		m := newMirror()
		until(t, watch(ctx, t, patient, m), m, m.isSynced)
		watch(ctx, t, hasty, newMirror())
		cancel()
	}
	stopped := make(chan struct{})
	go func() {
		w.Hub.Stop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(20 * time.Second):
		t.Error("Stop did not return")
	}
	if n := len(w.Hub.Agents()); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

// TestOpenRecordsVersion for the operator's lists.
func TestOpenRecordsVersion(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	agent := w.NewAgent(t, "one")
	s, err := feedv1.NewFeedClient(w.Dial(t, &agent.Cert)).Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&feedv1.WatchRequest{Step: &feedv1.WatchRequest_Open{Open: &feedv1.Open{AgentVersion: "1.2.3"}}}); err != nil {
		t.Fatal(err)
	}
	m := newMirror()
	until(t, s, m, m.isSynced)
	for {
		if a, ok := w.Index.Agent(agent.ID); ok && a.Version == "1.2.3" {
			break
		}
		if err := t.Context().Err(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	if states := w.Hub.Agents(); len(states) != 1 || states[0].Version != "1.2.3" {
		t.Errorf("Agents() = %+v", states)
	}
}

// TestReplacedIsAudited: two streams of one agent may be two machines with one
// key.
func TestReplacedIsAudited(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	w := apitest.New(t, apitest.Options{Log: slog.NewJSONHandler(&log, nil)})
	agent := w.NewAgent(t, "one")
	for range 2 {
		m := newMirror()
		s := watch(t.Context(), t, w.Dial(t, &agent.Cert), m)
		until(t, s, m, m.isSynced)
	}
	if text := log.String(); !strings.Contains(text, `"action":"feed.replace"`) || !strings.Contains(text, agent.ID.String()) {
		t.Errorf("log:\n%s", text)
	}
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestLargeSync: more than a message may hold goes in several, and means the
// same.
func TestLargeSync(t *testing.T) {
	t.Parallel()
	w := apitest.New(t, apitest.Options{})
	agent := w.NewAgent(t, "one")
	var all []*registry.Entry
	for i := range 2500 {
		e := w.Entry(t, agent.ID, fmt.Sprint("/e/", i))
		e.Hint = strings.Repeat("x", 1000) + fmt.Sprint(i)
		all = append(all, e)
	}
	w.Create(t, all...)
	m := newMirror()
	s := watch(t.Context(), t, w.Dial(t, &agent.Cert), m)
	messages := 0
	until(t, s, m, func() bool { messages++; return m.isSynced() })
	if messages < 4 {
		t.Errorf("2.5 MB came in %d messages", messages-1)
	}
	assertHolds(t, w, agent, m)
}
