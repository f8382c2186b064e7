package server

import (
	"crypto/x509"
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
)

// TestS30_RestoredStore: a server whose store is put back to an earlier day, or
// has lost the server's journal, finds keys that the store knows nothing of. It
// signs with none that is not in the bundle.
func TestS30_RestoredStore(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Plugins = config.Plugins{plugin(typeKeyManager, "disk")}
	file := filepath.Join(cfg.Server.DataDir, storeFile)
	run := func(what string, do func(r *running)) {
		t.Helper()
		r := start(t, cfg)
		r.signsWithWhatIsPublished(t, what)
		do(r)
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
	}
	run("at first", func(*running) {})
	backup, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	run("the same again", func(r *running) {
		for range 2 { // So that both slots have other keys than then.
			r.rotate(t)
		}
		r.signsWithWhatIsPublished(t, "after rotations")
	})
	if err := os.WriteFile(file, backup, 0o600); err != nil {
		t.Fatal(err)
	}
	run("with the store of before the rotations", func(r *running) {
		agent := r.attest(t)
		if err := agent.sign(t, agent.conn, r.register(t, &types.Entry{SpiffeId: wireID("/x"), ParentId: wireID(agent.id.Path())})); err != nil {
			t.Errorf("an agent that comes afterwards: %v", err)
		}
	})
	forgetJournals(t, file)
	run("without its journal", func(r *running) {
		if _, err := agentv1.NewAgentClient(r.admin(t)).CountAgents(t.Context(), &agentv1.CountAgentsRequest{}); err != nil {
			t.Error(err)
		}
	})
}

// forgetJournals removes the journals of all servers from a store.
func forgetJournals(t *testing.T, file string) {
	t.Helper()
	s, err := bolt.Open(bolt.Config{Path: file})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if _, err := s.Update(t.Context(), func(tx store.RWTx) error {
		n = 0
		for kv, err := range tx.Scan("j/", "") {
			if err != nil {
				return err
			}
			tx.Delete(kv.Key)
			n++
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil || n != 1 {
		t.Fatalf("%d journals were removed: %v", n, err)
	}
}

// rotate makes and activates another X.509 authority.
func (r *running) rotate(t *testing.T) {
	t.Helper()
	line := localauthorityv1.NewLocalAuthorityClient(r.admin(t))
	p, err := line.PrepareX509Authority(t.Context(), &localauthorityv1.PrepareX509AuthorityRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := line.ActivateX509Authority(t.Context(), &localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: p.PreparedAuthority.AuthorityId}); err != nil {
		t.Fatal(err)
	}
}

// signsWithWhatIsPublished holds what the server signs against its bundle.
func (r *running) signsWithWhatIsPublished(t *testing.T, what string) {
	t.Helper()
	cert := r.mint(t, "/by-hand")
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: r.pool(t), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Errorf("%s: an X509-SVID does not verify with the bundle: %v", what, err)
	}
	out, err := svidv1.NewSVIDClient(r.admin(t)).MintJWTSVID(t.Context(), &svidv1.MintJWTSVIDRequest{Id: wireID("/by-hand"), Audience: []string{"x"}})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	head, err := base64.RawURLEncoding.DecodeString(strings.Split(out.GetSvid().GetToken(), ".")[0])
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(r.bundle(t).JwtAuthorities, func(k *types.JWTKey) bool { return strings.Contains(string(head), k.KeyId) }) {
		t.Errorf("%s: a JWT-SVID is signed with a key that is not in the bundle", what)
	}
}
