package agent

import (
	"fmt"
	"time"

	"github.com/credence-id/credence/pkg/agent/attestor"
	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/agent/route"
	"github.com/credence-id/credence/pkg/agent/workloadapi"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/attest/node/jointoken"
	"github.com/credence-id/credence/pkg/attest/node/k8spsat"
	"github.com/credence-id/credence/pkg/attest/node/x509pop"
	"github.com/credence-id/credence/pkg/attest/workload"
	"github.com/credence-id/credence/pkg/attest/workload/k8s"
	"github.com/credence-id/credence/pkg/attest/workload/unix"
	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The concrete choices: configured name → constructor.
var (
	keyManagers = map[string]choose[keys.Manager]{
		"memory": chooseMemory,
		"disk":   chooseDisk,
	}
	provers = map[string]choose[node.Prover]{
		jointoken.Name: chooseJoinToken,
		k8spsat.Name:   chooseK8sPSAT,
		x509pop.Name:   chooseX509POP,
	}
	attestors = map[string]choose[makeAttestor]{
		unix.Name: chooseUnix,
		k8s.Name:  chooseK8s,
	}
)

// New puts an agent together from a configuration with defaults set, such as
// Load returns. It makes data_dir and reads the key manager's files, and starts
// nothing.
func New(c *Config, o Options) (*Agent, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	td, err := spiffeid.TrustDomainFromString(c.Agent.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("agent.trust_domain: %w", err)
	}
	serverID, err := spiffeid.FromPath(td, "/spire/server")
	if err != nil {
		return nil, fmt.Errorf("agent.trust_domain: %w", err)
	}
	if err := makeDataDir(c.Agent.DataDir); err != nil {
		return nil, err
	}
	a := &Agent{
		config: c, log: o.Log, version: o.Version, serverID: serverID, ready: o.Ready, listener: o.Listener,
		registry: telemetry.NewRegistry(), trust: &trust{td: td, news: make(chan struct{}, 1)}, started: time.Now(),
	}
	a.route = route.New(route.Config{Addresses: c.Agent.servers(), Options: dialOptions(o.Version), Log: o.Log})
	km, err := one(c, "KeyManager", keyManagers)
	if err != nil {
		return nil, err
	}
	if a.prover, err = newProver(c); err != nil {
		return nil, err
	}
	a.identity = &identity{td: td, keys: km, path: a.file(svidFile), target: c.Agent.AvailabilityTarget}
	a.state = &state{path: a.file(stateFile), withKeys: c.Agent.PersistSVIDs, log: o.Log}
	keyType, err := keys.ParseType(c.Agent.WorkloadX509SVIDKeyType)
	if err != nil {
		return nil, fmt.Errorf("agent.workload_x509_svid_key_type: %w", err)
	}
	if a.cache, err = cache.New(cache.Config{
		TrustDomain: td, Minter: (*minter)(a), KeyType: keyType,
		MaxX509SVIDs: c.Agent.X509SVIDCacheMaxSize, MaxJWTSVIDs: c.Agent.JWTSVIDCacheMaxSize,
		AvailabilityTarget: c.Agent.AvailabilityTarget,
		Log:                o.Log, Metrics: a.registry,
	}); err != nil {
		return nil, err
	}
	if err := a.newAttestors(); err != nil {
		return nil, err
	}
	if err := a.registerOutage(); err != nil {
		return nil, fmt.Errorf("registering the agent's metrics: %w", err)
	}
	a.api, err = workloadapi.New(workloadapi.Config{
		TrustDomain: td, Cache: a.cache, Attestor: a.attestor, Log: o.Log, Metrics: a.registry,
		AllowUnauthenticatedVerifiers: c.Agent.AllowUnauthenticatedVerifiers, AllowedForeignJWTClaims: c.Agent.AllowedForeignJWTClaims,
		Rates: c.Agent.Experimental.RateLimit.rates(),
	})
	if err != nil {
		return nil, err
	}
	if err := a.newCSI(); err != nil {
		return nil, err
	}
	return a, a.newAdmin(o)
}

// newAttestors makes the workload attestors that are configured.
func (a *Agent) newAttestors() error {
	var found []workload.Attestor
	for _, p := range a.config.Plugins.OfType(typeWorkloadAttestor) {
		build, err := open(a.config, p, attestors)
		if err != nil {
			return err
		}
		at, err := build(a)
		if err != nil {
			return p.Wrap(err)
		}
		found = append(found, at)
	}
	var err error
	a.attestor, err = attestor.New(attestor.Config{Attestors: found, Timeout: attestorTimeout, Log: a.log, Metrics: a.registry})
	return err
}
