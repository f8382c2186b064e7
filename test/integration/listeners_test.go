package integration

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"testing"
)

// What watches over the programs asks side listeners: they tell a program that
// runs (/live) from one that can do its work (/ready).
func TestSideListenersTellLiveFromReady(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "listeners")
	health := func(port int) string {
		return fmt.Sprintf("health_checks { listener_enabled = true bind_address = \"127.0.0.1\" bind_port = %d }", port)
	}
	onServer, onAgent := freePort(t), freePort(t)
	s := w.startServer(serverOptions{more: health(onServer)})
	answers(t, onServer, "/live", http.StatusOK)
	answers(t, onServer, "/ready", http.StatusOK)

	a := w.newAgent(s, "a", agentOptions{})
	writeFile(t, a.config(), a.text(agentOptions{})+health(onAgent))
	s.stop()
	a.run("-joinToken", a.token)
	answers(t, onAgent, "/live", http.StatusOK)
	answers(t, onAgent, "/ready", http.StatusInternalServerError)
	s.start()
	answers(t, onAgent, "/ready", http.StatusOK)

	// Everybody may ask the agent; only the operator may ask the server.
	for path, want := range map[string]os.FileMode{a.socket(): 0o777, s.socket(): 0o770} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v (error %v), want %v", path, info.Mode().Perm(), err, want)
		}
	}
	a.stop()
	s.stop()
	for _, path := range []string{a.socket(), s.socket()} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s was left behind", path)
		}
	}
}

// answers waits until the listener answers with the status.
func answers(t *testing.T, port int, path string, want int) {
	t.Helper()
	url := fmt.Sprintf("http://127.0.0.1:%d%s", port, path)
	eventually(t, fmt.Sprintf("%s answers %d", url, want), func() error {
		resp, err := http.Get(url)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != want {
			return fmt.Errorf("it answers %d", resp.StatusCode)
		}
		return nil
	})
}

// For a trial an agent may trust whoever answers. It says so.
func TestAnAgentMayTrustWhoeverAnswersForATrial(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "trial")
	s := w.startServer(serverOptions{})
	a := w.newAgent(s, "a", agentOptions{})
	careful, err := os.ReadFile(a.config())
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, a.config(), regexp.MustCompile(`trust_bundle_path = .*`).ReplaceAllString(string(careful), ""))
	token := a.dir + "/token"
	writeFile(t, token, a.token+"\n")
	s.create(w.entry("/web", a.id(), self()))
	healthy(t, a.run("-insecureBootstrap", "-joinTokenFile", token), a.conn)
	a.proc.await(t, `level=WARN msg="trusting whoever answers.*not for production"`)
	sees(t, a, w.id("/web"))

	// Once it knows its server, it does not trust others.
	a.stop()
	writeFile(t, a.config(), string(careful))
	w.pemFile(a.bundlePath(), "CERTIFICATE", w.newMachines().cert.Raw)
	a.start()
	sees(t, a, w.id("/web"))
}
