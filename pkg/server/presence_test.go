package server

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/registry"
)

var discard = slog.New(slog.DiscardHandler)

// TestTwinIsFoundOut: two servers with one ID, as after copying data_dir, do not
// both run.
func TestTwinIsFoundOut(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	r := c.servers[0]
	id, err := os.ReadFile(filepath.Join(r.inside.settings.DataDir, serverIDFile))
	if err != nil {
		t.Fatal(err)
	}
	p := newPresence(c.shared, string(id[:len(id)-1]), "copy", discard)
	p.patience = 50 * time.Millisecond
	if err := p.take(t.Context()); !errors.Is(err, errTwin) {
		t.Errorf("the copy: %v", err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if err := p.take(t.Context()); err != nil {
		t.Errorf("after the other one ended: %v", err)
	}
	p.release()
}

// TestPresenceOutlivesAKill: a server that starts again before the lease of its
// killed process is over waits for that.
func TestPresenceOutlivesAKill(t *testing.T) {
	t.Parallel()
	s := openShared(t)
	killed, err := s.Lock(t.Context(), registry.ServerLock("0123"))
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(presenceNotice+200*time.Millisecond, killed.Unlock)
	p := newPresence(s, "0123", "dir", discard)
	if err := p.take(t.Context()); err != nil {
		t.Errorf("after the lease ended: %v", err)
	}
}

// TestPresenceLost: a lock that was lost is taken again; unless another server
// has it, and the store says so.
func TestPresenceLost(t *testing.T) {
	t.Parallel()
	s := openShared(t)
	way := newTether(s)
	p := newPresence(way, "0123", "dir", discard)
	p.patience = 20 * time.Millisecond
	if err := p.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- p.Run(t.Context(), func(ctx context.Context) error {
			_, err := way.Head(ctx)
			return err
		})
	}()
	way.expire()
	held := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		l, err := s.Lock(ctx, registry.ServerLock("0123"))
		if err == nil {
			l.Unlock()
		}
		return err != nil
	}
	soon(t, "the lock is held again", func(context.Context) bool { return held() })
	way.cut()
	way.expire()
	twin, err := s.Lock(t.Context(), registry.ServerLock("0123"))
	if err != nil {
		t.Fatal(err)
	}
	defer twin.Unlock()
	select {
	case err := <-ended:
		t.Fatalf("cut off from the store it ended: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	way.heal()
	if err := <-ended; !errors.Is(err, errTwin) {
		t.Errorf("with a twin: %v", err)
	}
}

// TestAuthorityOfAServerThatIsGone: an operator removes it at another server, and
// not while it runs; when it comes back after all, it does not publish it again.
func TestAuthorityOfAServerThatIsGone(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	r := c.servers[0]
	cfg := testConfig(t)
	cfg.Plugins = config.Plugins{plugin(typeKeyManager, "disk")}
	other := startOn(t, cfg, newTether(c.shared))
	line := localauthorityv1.NewLocalAuthorityClient(r.admin(t))
	state, err := localauthorityv1.NewLocalAuthorityClient(other.admin(t)).GetX509AuthorityState(t.Context(), &localauthorityv1.GetX509AuthorityStateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	id := state.Active.AuthorityId
	taint := func() error {
		_, err := line.TaintX509Authority(t.Context(), &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: id})
		return err
	}
	revoke := func() error {
		_, err := line.RevokeX509Authority(t.Context(), &localauthorityv1.RevokeX509AuthorityRequest{AuthorityId: id})
		return err
	}
	if err := taint(); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "is running") {
		t.Errorf("while it runs: %v", err)
	}
	if err := other.stop(); err != nil {
		t.Fatal(err)
	}
	if err := revoke(); err == nil {
		t.Error("it was revoked before it was tainted")
	}
	if err := taint(); err != nil {
		t.Fatal(err)
	}
	if err := revoke(); err != nil {
		t.Fatal(err)
	}
	roots := func(r *running) (ids []string) {
		for _, a := range r.bundle(t).X509Authorities {
			cert, err := x509.ParseCertificate(a.Asn1)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, hex.EncodeToString(cert.SubjectKeyId))
		}
		return ids
	}
	if got := roots(r); len(got) != 1 || got[0] == id {
		t.Errorf("the bundle has %v", got)
	}
	cfg.Listener = nil
	back := startOn(t, cfg, newTether(c.shared))
	if got := roots(back); len(got) != 2 || slices.Contains(got, id) {
		t.Errorf("once it is back the bundle has %v, among them not %v", got, id)
	}
	back.mint(t, "/x")
}
