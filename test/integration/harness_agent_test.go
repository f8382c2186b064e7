package integration

import (
	"bufio"
	"cmp"
	"fmt"
	"net/http"
	"os/exec"
	"strconv"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
)

// agentOptions are what a story says about an agent; the zero value is an agent
// as users have it.
type agentOptions struct {
	// settings are lines of the section agent, beside those every agent has.
	settings string
	// memoryKeys forgets the agent's own key when it ends.
	memoryKeys bool
	// attestor is the line of the node attestor; join_token if empty.
	attestor string
}

// agent is a credence-agent: one data_dir, started any number of times.
type agent struct {
	*world
	server  *server
	name    string
	dir     string
	metrics int // port
	token   string
	proc    *process
	conn    *grpc.ClientConn
}

// newAgent writes a configuration, takes the server's bundle and a join token
// along, and starts nothing.
func (w *world) newAgent(s *server, name string, o agentOptions) *agent {
	w.t.Helper()
	a := &agent{world: w, server: s, name: name, dir: w.path(name), metrics: freePort(w.t), token: s.token()}
	a.conn = dialSocket(w.t, a.socket())
	writeFile(w.t, a.bundlePath(), s.bundlePEM())
	writeFile(w.t, a.config(), a.text(o))
	return a
}

func (a *agent) text(o agentOptions) string {
	keys := "disk"
	if o.memoryKeys {
		keys = "memory"
	}
	return fmt.Sprintf(`
agent {
	trust_domain = %q
	data_dir = %q
	server_address = "127.0.0.1"
	server_port = %d
	socket_path = %q
	trust_bundle_path = %q
	log_level = "DEBUG"
%s
}
plugins {
	KeyManager %q { plugin_data {} }
	%s
	WorkloadAttestor "unix" { plugin_data { discover_workload_path = true } }
}
telemetry {
	Prometheus { host = "127.0.0.1" port = %d }
}
`, a.td.Name(), a.dataDir(), a.server.port, a.socket(), a.bundlePath(), o.settings, keys, cmp.Or(o.attestor, `NodeAttestor "join_token" { plugin_data {} }`), a.metrics)
}

func (a *agent) config() string     { return a.dir + "/agent.conf" }
func (a *agent) dataDir() string    { return a.dir + "/data" }
func (a *agent) socket() string     { return a.dir + "/public/api.sock" }
func (a *agent) bundlePath() string { return a.dir + "/bundle.pem" }

// id is the agent's SPIFFE ID, which its first join token has given it.
func (a *agent) id() spiffeid.ID { return a.world.id("/spire/agent/join_token/" + a.token) }

// run launches the agent without waiting for it.
func (a *agent) run(args ...string) *process {
	a.t.Helper()
	a.proc = a.launch(a.name, exec.Command(a.bin.agent, append([]string{"run", "-config", a.config()}, args...)...))
	return a.proc
}

// attest runs the agent with its join token and waits until it is healthy: in
// sync with its server.
func (a *agent) attest() {
	a.t.Helper()
	healthy(a.t, a.run("-joinToken", a.token), a.conn)
}

// start runs an agent that has attested before.
func (a *agent) start() {
	a.t.Helper()
	healthy(a.t, a.run(), a.conn)
}

// startAgent makes, attests and starts an agent.
func (w *world) startAgent(s *server, name string, o agentOptions) *agent {
	w.t.Helper()
	a := w.newAgent(s, name, o)
	a.attest()
	return a
}

func (a *agent) stop() { a.t.Helper(); a.proc.stop(a.t) }
func (a *agent) kill() { a.t.Helper(); a.proc.kill(a.t) }

// cli runs a verb of credence-agent against this agent.
func (a *agent) cli(args ...string) output {
	a.t.Helper()
	return a.runCommand(a.command(a.bin.agent, append(args, "-socketPath", a.socket())...))
}

// metric reads one of the agent's metrics, named with its labels as Prometheus
// writes them; 0 if it is not there yet.
func (a *agent) metric(name string) (float64, error) {
	resp, err := http.Get("http://127.0.0.1:" + strconv.Itoa(a.metrics) + "/metrics")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, nil
}

// warm waits until the agent has minted n X509-SVIDs since it started, asked or
// not.
func (a *agent) warm(n float64) {
	a.t.Helper()
	eventually(a.t, "the agent holds its SVIDs warm", func() error {
		got, err := a.metric(`credence_agent_cache_mint_total{kind="x509",result="ok"}`)
		if err == nil && got < n {
			err = fmt.Errorf("%v of %v minted", got, n)
		}
		return err
	})
}

// renewals is how often the agent has renewed its own SVID since it started.
func (a *agent) renewals() int {
	return strings.Count(a.proc.log.String(), "renewed the agent's SVID")
}
