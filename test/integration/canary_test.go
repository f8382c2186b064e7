package integration

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
)

// Secrets pass through server and agent in every way there is: as a workload's
// arguments, environment and path, as selectors, tokens and keys, rightly and in
// error, at the level DEBUG. None of them is in a log, a metric or an error (S05,
// S22). Every other story looks for its tokens, too.
func TestS05_NoSecretReachesALogOrAMetric(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "canary")
	metrics := freePort(t)
	s := w.startServer(serverOptions{more: fmt.Sprintf(`telemetry { Prometheus { host = "127.0.0.1" port = %d } }`, metrics)})
	a := w.startAgent(s, "a", agentOptions{settings: "persist_svids = true"})

	// 1. A workload that is known by its path, and is told secrets.
	inPath, inSelector := w.secret("canary-in-path"), w.secret("canary-in-selector")
	inEnv, inArgs := w.secret("canary-in-env"), w.secret("canary-in-args")
	if err := os.Mkdir(w.path(inPath), 0o755); err != nil {
		t.Fatal(err)
	}
	program := w.stage(filepath.Join(inPath, "workload"))
	fetch := func() count {
		p := w.play("fetch", program, 0, socketVariable+"="+a.socket(), "PASSWORD="+inEnv, argsVariable+"="+inArgs)
		if code := p.exit(t, patience); code != 0 {
			t.Fatalf("the workload ended with exit code %d", code)
		}
		return tally(p.events())
	}
	if c := fetch(); !strings.Contains(c.failed, "no identity issued") {
		t.Fatalf("a workload without an entry was told %q", c.failed)
	}
	s.create(w.entry("/known", a.id(), "unix:path:"+program))
	e := s.create(w.entry("/never", a.id(), "unix:path:/opt/"+inSelector, self()))
	a.warm(2)
	if c := fetch(); !c.ids[w.id("/known").String()] {
		t.Fatalf("the workload was given %v (%s)", c.ids, c.failed)
	}
	if _, err := createEntry(t, s.entries(), e); err == nil {
		t.Error("the same entry was made twice")
	}
	e.Selectors = append(e.Selectors, e.GetSelectors()[0])
	e.DnsNames = []string{"not a name"}
	if _, err := createEntry(t, s.entries(), e); err == nil {
		t.Error("an entry with a bad DNS name was made")
	} else if strings.Contains(err.Error(), inSelector) {
		t.Errorf("the refusal %q has a selector's value", err)
	}

	// 2. Tokens: one that nobody uses until it has expired, with its alias; one
	// that the server never made; one in a file that cannot be read.
	resp, err := s.agents().CreateJoinToken(bounded(t), &agentv1.CreateJoinTokenRequest{Ttl: 1, AgentId: apiID(w.id("/alias"))})
	if err != nil {
		t.Fatal(err)
	}
	w.secret(resp.GetValue())
	unknown := w.secret("canary-token-of-nobody")
	b := w.newAgent(s, "b", agentOptions{})
	wantOneLine(t, w.endsAtOnce(b.run("-joinToken", unknown)), "the server refuses")
	writeFile(t, b.config(), b.text(agentOptions{settings: "join_token = " + w.secret("canary.unquoted-token")}))
	wantOneLine(t, w.endsAtOnce(b.run()), "agent.conf:")
	eventually(t, "the expired token's alias is gone", func() error {
		if n := len(s.allEntries()); n != 2 {
			return fmt.Errorf("%d entries", n)
		}
		return nil
	})
	wantOneLine(t, w.endsAtOnce(w.newAgent(s, "c", agentOptions{}).run("-joinToken", resp.GetValue())), "the server refuses")

	// 3. JWT-SVIDs, good, for somebody else, and broken.
	s.create(w.entry("/self", a.id(), self()))
	sees(t, a, w.id("/self"))
	client, err := workloadapi.New(bounded(t), workloadapi.WithAddr("unix://"+a.socket()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	token, err := client.FetchJWTSVID(bounded(t), jwtsvid.Params{Audience: "me"})
	if err != nil {
		t.Fatal(err)
	}
	w.secret(token.Marshal())
	signature := token.Marshal()[strings.LastIndex(token.Marshal(), ".")+1:]
	w.secret(signature)
	for _, text := range []string{token.Marshal(), token.Marshal() + "x", signature} {
		for _, audience := range []string{"me", "you"} {
			_, err := workload.NewSpiffeWorkloadAPIClient(a.conn).ValidateJWTSVID(workloadContext(bounded(t)),
				&workload.ValidateJWTSVIDRequest{Audience: audience, Svid: text})
			if err != nil && strings.Contains(err.Error(), signature) {
				t.Errorf("the refusal %q has the token", err)
			}
		}
	}

	// 4. What was said meanwhile.
	for name, port := range map[string]int{"server": metrics, "agent": a.metrics} {
		text := get(t, fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
		if !strings.Contains(text, "credence_") {
			t.Errorf("the %s has no metrics:\n%s", name, text)
		}
		for _, secret := range append(w.secrets, a.token) {
			if strings.Contains(text, secret) {
				t.Errorf("the %s's metrics have the secret %q", name, secret)
			}
		}
	}
	for _, p := range []*process{s.proc, a.proc} {
		if !strings.Contains(p.log.String(), "level=DEBUG") {
			t.Errorf("%s has logged nothing at the level DEBUG", p.name)
		}
	}
	// The logs are searched at the end, as always.
}

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
