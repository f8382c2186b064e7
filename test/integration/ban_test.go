package integration

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// gone is how soon an agent that was banned or evicted serves nobody any more
// (S18).
const gone = time.Second

// A banned agent ends its streams, serves nobody, wipes what it holds and ends,
// within a second; it cannot come back, not with what is on its disk nor with its
// token. An evicted one the same, as its token was good once.
func TestS18_AnAgentThatIsNotWantedIsGone(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, line string
		refuse     func(*server, *agent)
	}{
		{"banned", "the server has banned this agent; lift the ban with `credence-server agent evict`", func(s *server, a *agent) { s.ban(a.id()) }},
		{"evicted", "the server refuses to attest this agent; a join token is good for one agent", func(s *server, a *agent) { s.evict(a.id()) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, test.name)
			s := w.startServer(serverOptions{})
			// The worst case: everything is on disk too.
			a := w.startAgent(s, "a", agentOptions{settings: "persist_svids = true"})
			other := w.startAgent(s, "b", agentOptions{})
			s.create(w.entry("/web", a.id(), self()))
			s.create(w.entry("/web", other.id(), self()))
			stream, kept := streamOf(t, a, w.id("/web")), streamOf(t, other, w.id("/web"))
			svid := stream.last.find(w.id("/web"))

			begin := time.Now()
			test.refuse(s, a)
			end := stream.untilWithin(gone, "the stream ends", func(u x509Update) bool { return u.err != nil })
			t.Logf("%s: the stream ended after %v with %v", test.name, end.at.Sub(begin).Round(time.Millisecond), end.err)
			if code := status.Code(end.err); code != codes.PermissionDenied && code != codes.Unavailable {
				t.Errorf("the stream ended with %v, want PermissionDenied, or Unavailable when the agent was quicker", end.err)
			}
			if u, err := fetchX509Within(t, a.conn, gone); err == nil {
				t.Errorf("a workload was given %v by an agent that is %s", u, test.name)
			}
			if code := a.proc.exit(t, patience); code != 1 {
				t.Errorf("the agent ended with exit code %d, want 1", code)
			}
			wantOneLine(t, output{code: 1, stderr: a.proc.log.String()}, test.line)
			if onDisk(t, a, svid.leaf.Raw) {
				t.Error("the SVID is on the agent's disk still")
			}

			// With nothing, and with the token of old.
			wantOneLine(t, s.endsAtOnce(a.run()), "following the server: attesting with join_token: no join token is configured")
			wantOneLine(t, s.endsAtOnce(a.run("-joinToken", a.token)), test.line)
			// Nobody else was touched.
			s.create(w.entry("/second", other.id(), self()))
			kept.has(w.id("/web"), w.id("/second"))
		})
	}
}
