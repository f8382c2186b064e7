package agent

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/pkg/agent/attestor"
	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/agent/workloadapi"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/attest/node/jointoken"
	"github.com/credence-id/credence/pkg/attest/node/x509pop"
	"github.com/credence-id/credence/pkg/attest/workload"
	"github.com/credence-id/credence/pkg/attest/workload/unix"
	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/keys/diskkey"
	"github.com/credence-id/credence/pkg/keys/memkey"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The concrete choices: configured name → constructor.
var (
	keyManagers = map[string]func(*Config, config.Plugin) (keys.Manager, error){
		"memory": func(*Config, config.Plugin) (keys.Manager, error) { return memkey.New(), nil },
		"disk":   newDiskKeys,
	}
	provers = map[string]func(*Config, config.Plugin) (node.Prover, error){
		jointoken.Name: newJoinToken,
		x509pop.Name:   newX509POP,
	}
	attestors = map[string]func(*Config, config.Plugin) (workload.Attestor, error){
		"unix": newUnix,
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
	km, err := one(c, "KeyManager", keyManagers)
	if err != nil {
		return nil, err
	}
	if a.prover, err = one(c, "NodeAttestor", provers); err != nil {
		return nil, err
	}
	var found []workload.Attestor
	for _, p := range c.Plugins.OfType("WorkloadAttestor") {
		at, err := attestors[p.Name](c, p)
		if err != nil {
			return nil, p.Errorf("%w", err)
		}
		found = append(found, at)
	}
	a.identity = &identity{td: td, keys: km, path: a.file(svidFile)}
	a.state = &state{path: a.file(stateFile), withKeys: c.Agent.PersistSVIDs, log: o.Log}
	keyType, err := keys.ParseType(c.Agent.WorkloadX509SVIDKeyType)
	if err != nil {
		return nil, fmt.Errorf("agent.workload_x509_svid_key_type: %w", err)
	}
	if a.attestor, err = attestor.New(attestor.Config{Attestors: found, Timeout: attestorTimeout, Log: o.Log, Metrics: a.registry}); err != nil {
		return nil, err
	}
	if a.cache, err = cache.New(cache.Config{
		TrustDomain: td, Minter: (*minter)(a), KeyType: keyType,
		MaxX509SVIDs: c.Agent.X509SVIDCacheMaxSize, MaxJWTSVIDs: c.Agent.JWTSVIDCacheMaxSize,
		Log: o.Log, Metrics: a.registry,
	}); err != nil {
		return nil, err
	}
	a.api, err = workloadapi.New(workloadapi.Config{
		TrustDomain: td, Cache: a.cache, Attestor: a.attestor, Log: o.Log, Metrics: a.registry,
		AllowUnauthenticatedVerifiers: c.Agent.AllowUnauthenticatedVerifiers, AllowedForeignJWTClaims: c.Agent.AllowedForeignJWTClaims,
	})
	if err != nil {
		return nil, err
	}
	return a, a.newAdmin(o)
}

// checkPlugins reports plugins that are unknown, missing or too many.
func (c *Config) checkPlugins() error {
	problems := []error{c.Plugins.Check(map[string][]string{
		"KeyManager":       slices.Sorted(maps.Keys(keyManagers)),
		"NodeAttestor":     slices.Sorted(maps.Keys(provers)),
		"WorkloadAttestor": slices.Sorted(maps.Keys(attestors)),
	}, later)}
	for _, kind := range []string{"KeyManager", "NodeAttestor"} {
		found := c.Plugins.OfType(kind)
		if len(found) == 0 {
			problems = append(problems, c.file.Errorf("plugins."+kind, "0 are configured; the agent needs exactly one"))
		}
		for i := 1; i < len(found); i++ {
			problems = append(problems, found[i].Errorf("only one %s can be used, and %q is configured too; keep one", kind, found[0].Name))
		}
	}
	if len(c.Plugins.OfType("WorkloadAttestor")) == 0 {
		problems = append(problems, c.file.Errorf("plugins.WorkloadAttestor", `none is configured; without one no workload can be recognised: add WorkloadAttestor "unix" {}`))
	}
	for _, p := range c.Plugins {
		if p.Cmd != "" && p.Enabled {
			problems = append(problems, p.Errorf("plugin_cmd: external plugins are not supported by this version; use a built-in one"))
		}
	}
	return config.Problems(problems...)
}

// one makes the one plugin of a kind, which checkPlugins has seen to.
func one[T any](c *Config, kind string, constructors map[string]func(*Config, config.Plugin) (T, error)) (T, error) {
	p := c.Plugins.OfType(kind)[0]
	t, err := constructors[p.Name](c, p)
	if err != nil {
		return t, p.Errorf("%w", err)
	}
	return t, nil
}

func newDiskKeys(c *Config, p config.Plugin) (keys.Manager, error) {
	data := struct {
		// Directory holds keys.json; default data_dir.
		Directory string `hcl:"directory"`
	}{Directory: c.Agent.DataDir}
	if err := p.Decode(&data); err != nil {
		return nil, err
	}
	return diskkey.New(filepath.Join(data.Directory, "keys.json"))
}

func newJoinToken(c *Config, p config.Plugin) (node.Prover, error) {
	if err := p.Decode(&struct{}{}); err != nil {
		return nil, err
	}
	token := c.Agent.JoinToken
	if c.Agent.JoinTokenFile != "" {
		data, err := os.ReadFile(c.Agent.JoinTokenFile)
		if err != nil {
			return nil, fmt.Errorf("agent.join_token_file: %w", err)
		}
		token = strings.TrimSpace(string(data))
	}
	return jointoken.NewProver(token), nil
}

func newX509POP(_ *Config, p config.Plugin) (node.Prover, error) {
	var data x509pop.ProverConfig
	if err := p.Decode(&data); err != nil {
		return nil, err
	}
	if err := data.Validate(); err != nil {
		return nil, err
	}
	return x509pop.NewProver(data), nil
}

func newUnix(_ *Config, p config.Plugin) (workload.Attestor, error) {
	var data unix.Config
	if err := p.Decode(&data); err != nil {
		return nil, err
	}
	return unix.New(data), nil
}
