package fleet

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// Stats is what agents met with. Its methods may be called concurrently.
type Stats struct {
	received, sent atomic.Int64 // bytes on the wire, TLS included
	payload        atomic.Int64 // bytes of messages, both ways

	mu sync.Mutex
	// guarded by mu:
	s Sample
}

// Sample is a copy of the figures since the start or the last Reset.
type Sample struct {
	// Attested is how long each attestation took, connecting included.
	Attested []time.Duration
	// Renewed is how many agents got the next SVID of their own.
	Renewed int
	// Moved is how many agents went to another server when theirs said so.
	Moved int
	// Gaps are the times that an agent was without a stream, from the end of
	// one until it was in sync on the next; those of renewals too.
	Gaps []time.Duration
	// Lost are the ends of streams that were not the agent's wish, by what the
	// server or the connection said.
	Lost map[string]int
	// Minted is how long each call for a workload's SVID took, and Late how
	// long after it was due the SVID was there, when calls had to be repeated.
	Minted, Late []time.Duration
	// Failed are calls for SVIDs that failed, by code; they were repeated.
	Failed map[string]int
	// Missed is how many SVIDs were given up.
	Missed int
	// Diverged is how often a digest was not the server's.
	Diverged int
	// Received and Sent are the bytes on the wire, TLS included; Payload those
	// of messages, both ways.
	Received, Sent, Payload int64
}

// Sample is the figures so far.
func (s *Stats) Sample() Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.s
	out.Received, out.Sent, out.Payload = s.received.Load(), s.sent.Load(), s.payload.Load()
	return out
}

// Reset begins anew.
func (s *Stats) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.s = Sample{}
	s.received.Store(0)
	s.sent.Store(0)
	s.payload.Store(0)
}

func (s *Stats) note(change func(*Sample)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.s)
}

func count(in *map[string]int, err error) {
	if *in == nil {
		*in = map[string]int{}
	}
	name := status.Code(err).String()
	(*in)[name]++
}

// counted counts the bytes of a connection.
type counted struct {
	net.Conn
	stats *Stats
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.stats.received.Add(int64(n))
	return n, err
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.stats.sent.Add(int64(n))
	return n, err
}

// payloads counts the bytes of messages: what is on the wire beside them is
// gRPC's and TLS's own.
type payloads struct{ *Stats }

var _ stats.Handler = payloads{}

// TagRPC is stats.Handler.
func (payloads) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC is stats.Handler.
func (p payloads) HandleRPC(_ context.Context, s stats.RPCStats) {
	switch s := s.(type) {
	case *stats.InPayload:
		p.payload.Add(int64(s.Length))
	case *stats.OutPayload:
		p.payload.Add(int64(s.Length))
	}
}

// TagConn is stats.Handler.
func (payloads) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn is stats.Handler.
func (payloads) HandleConn(context.Context, stats.ConnStats) {}
