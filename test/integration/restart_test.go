package integration

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
)

// A workload holds its identity, by go-spiffe, while server and agent are
// restarted in every order, in peace and by kill -9; and after each restart the
// push stream works as before.
func TestAWorkloadKeepsItsIdentityOverRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "restart")
	s := w.startServer(serverOptions{})
	a := w.startAgent(s, "a", agentOptions{})
	web := w.id("/web")
	entry := s.create(w.entry("/web", a.id(), self()))

	source, err := workloadapi.NewX509Source(bounded(t), workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+a.socket())))
	if err != nil {
		t.Fatalf("opening an X509Source: %v", err)
	}
	t.Cleanup(func() { _ = source.Close() })
	asked, failed := holdIdentity(t, source, web.String())

	steps := []struct {
		name string
		do   func()
	}{
		{"server, then agent", func() { s.stop(); s.start(); a.stop(); a.start() }},
		{"agent, then server", func() { a.stop(); a.start(); s.stop(); s.start() }},
		{"both, server first", func() { s.stop(); a.stop(); s.start(); a.start() }},
		{"both, agent first", func() { a.stop(); s.stop(); a.run(); s.start(); healthy(t, a.proc, a.conn) }},
		{"both killed, agent first", func() { s.kill(); a.kill(); a.run(); s.start(); healthy(t, a.proc, a.conn) }},
	}
	for i, step := range steps {
		step.do()
		path := fmt.Sprintf("/after/%d", i)
		e := s.create(w.entry(path, a.id(), self()))
		sees(t, a, web, w.id(path))
		s.remove(e.GetId())
		// The source that was open all the while comes back too: go-spiffe
		// waits a second and more before it does.
		entry.DnsNames = []string{fmt.Sprintf("n%d.restart.test", i)}
		entry = s.change(entry)
		eventually(t, step.name+": the X509Source has the changed entry", func() error {
			svid, err := source.GetX509SVID()
			if err == nil && !slices.Equal(svid.Certificates[0].DNSNames, entry.GetDnsNames()) {
				err = fmt.Errorf("DNS names are %q, want %q", svid.Certificates[0].DNSNames, entry.GetDnsNames())
			}
			return err
		})
		if text := failed(); text != "" {
			t.Fatalf("%s: the X509Source said: %s", step.name, text)
		}
	}
	if n := asked(); n < 20 {
		t.Errorf("the X509Source was asked %d times only, want at least 20", n)
	}
	count, err := s.agents().CountAgents(bounded(t), &agentv1.CountAgentsRequest{})
	if err != nil || count.GetCount() != 1 {
		t.Errorf("%d agents are known (error %v), want 1: no restart may need an attestation", count.GetCount(), err)
	}
}

// holdIdentity asks the source for the workload's SVID all the time, and keeps
// what went wrong first.
func holdIdentity(t *testing.T, source *workloadapi.X509Source, want string) (asked func() int64, failed func() string) {
	ctx, cancel := context.WithCancel(t.Context())
	var n atomic.Int64
	var first atomic.Pointer[string]
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil && first.Load() == nil {
			svid, err := source.GetX509SVID()
			switch {
			case err != nil:
				text := err.Error()
				first.Store(&text)
			case svid.ID.String() != want:
				text := "the default identity is " + svid.ID.String()
				first.Store(&text)
			case time.Now().After(svid.Certificates[0].NotAfter):
				text := "the SVID has expired"
				first.Store(&text)
			}
			n.Add(1)
			time.Sleep(pollPause)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return n.Load, func() string {
		if text := first.Load(); text != nil {
			return *text
		}
		return ""
	}
}
