package integration

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/pkg/ca"
	"github.com/credence-id/credence/pkg/keys/diskkey"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store/bolt"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
)

// A server starts over a store that was written while its clock was far off: in
// the future, so that its authorities are not valid yet, or in the past, so that
// they expired long ago. It heals by itself: it makes authorities that are valid
// now, and what it signs verifies. No clock can be set for one process here, so
// the store is made in simulated time and the real server started on it.
func TestAServerWhoseClockWasFarOffHeals(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		off  time.Duration
	}{
		{"ahead by 90 days", 90 * 24 * time.Hour},
		{"ahead by an hour", time.Hour},
		{"behind by 20 years", -20 * 365 * 24 * time.Hour},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "clock")
			s := w.newServer(serverOptions{})
			then := time.Now().Add(test.off)
			synctest.Test(t, func(t *testing.T) { beginStoreAt(t, s, then) })

			s.start()
			a := w.startAgent(s, "a", agentOptions{})
			s.create(w.entry("/web", a.id(), self()))
			i := sees(t, a, w.id("/web")).find(w.id("/web"))
			i.verify(t)
			if left := time.Until(i.leaf.NotAfter); left < 55*time.Minute || left > 65*time.Minute {
				t.Errorf("the SVID lives for %v, want an hour", left)
			}
			if _, err := svidv1.NewSVIDClient(s.conn).MintJWTSVID(bounded(t), &svidv1.MintJWTSVIDRequest{Id: apiID(w.id("/x")), Audience: []string{"x"}}); err != nil {
				t.Errorf("minting a JWT-SVID: %v", err)
			}
			valid := 0
			for _, authority := range s.bundle().GetX509Authorities() {
				c, err := x509.ParseCertificate(authority.GetAsn1())
				if err != nil {
					t.Fatal(err)
				}
				if now := time.Now(); now.After(c.NotBefore) && now.Before(c.NotAfter) {
					valid++
				}
			}
			if valid != 1 {
				t.Errorf("%d authorities of the bundle are valid now, want 1", valid)
			}
		})
	}
}

// beginStoreAt makes a data_dir as a server does that starts at the given time.
func beginStoreAt(t *testing.T, s *server, then time.Time) {
	time.Sleep(time.Until(then))
	if err := os.MkdirAll(s.dataDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	const serverID = "00112233445566778899aabbccddeeff"
	writeFile(t, filepath.Join(s.dataDir(), "server_id"), serverID+"\n")
	store, err := bolt.Open(bolt.Config{Path: filepath.Join(s.dataDir(), "credence.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	records, err := registry.New(t.Context(), registry.Config{Store: store, TrustDomain: s.td})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := diskkey.New(filepath.Join(s.dataDir(), "keys.json"))
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ca.New(ca.Config{TrustDomain: s.td, ServerID: serverID, Registry: records, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	if err := authority.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	made := authority.X509().State()
	if len(made) == 0 || !strings.HasPrefix(made[0].NotAfter.UTC().Format(time.RFC3339), then.Add(24*time.Hour).UTC().Format("2006-01-02")) {
		t.Fatalf("the authorities are %+v, want one that begins at %v", made, then)
	}
}
