package agent

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/attest/node/jointoken"
	"github.com/credence-id/credence/pkg/attest/node/k8spsat"
	"github.com/credence-id/credence/pkg/attest/node/x509pop"
	"github.com/credence-id/credence/pkg/attest/workload"
	"github.com/credence-id/credence/pkg/attest/workload/k8s"
	"github.com/credence-id/credence/pkg/attest/workload/unix"
	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/keys/diskkey"
	"github.com/credence-id/credence/pkg/keys/memkey"
	"github.com/credence-id/credence/pkg/preflight"
)

// Names of plugin types in the file.
const (
	typeKeyManager       = "KeyManager"
	typeNodeAttestor     = "NodeAttestor"
	typeWorkloadAttestor = "WorkloadAttestor"
)

// part is a plugin whose section has been read.
type part[T any] struct {
	// open makes it; it reads the files it needs and starts nothing.
	open func() (T, error)
	// check says what open would, and changes nothing; nil: nothing can go
	// wrong.
	check func() error
	// notices are keys that have no effect.
	notices []config.Notice
}

// choose reads the section of a plugin, and reports all that is wrong with it.
type choose[T any] func(*Config, config.Plugin) (part[T], error)

// open makes a plugin whose section has been seen to.
func open[T any](c *Config, p config.Plugin, from map[string]choose[T]) (T, error) {
	found, err := from[p.Name](c, p)
	if err == nil {
		var made T
		if made, err = found.open(); err == nil {
			return made, nil
		}
	}
	var none T
	return none, p.Wrap(err)
}

// one makes the one plugin of a type.
func one[T any](c *Config, kind string, from map[string]choose[T]) (T, error) {
	return open(c, c.Plugins.OfType(kind)[0], from)
}

// checkPlugins reports plugins that are unknown, missing or too many, and what
// is wrong with their sections.
func (c *Config) checkPlugins() error {
	problems := []error{c.Plugins.Check(map[string][]string{
		typeKeyManager:       slices.Sorted(maps.Keys(keyManagers)),
		typeNodeAttestor:     slices.Sorted(maps.Keys(provers)),
		typeWorkloadAttestor: slices.Sorted(maps.Keys(attestors)),
	}, later)}
	for _, kind := range []string{typeKeyManager, typeNodeAttestor} {
		found := c.Plugins.OfType(kind)
		if len(found) == 0 {
			problems = append(problems, c.file.Errorf("plugins."+kind, "0 are configured; the agent needs exactly one"))
		}
		for i := 1; i < len(found); i++ {
			problems = append(problems, found[i].Errorf("only one %s can be used, and %q is configured too; keep one", kind, found[0].Name))
		}
	}
	if len(c.Plugins.OfType(typeWorkloadAttestor)) == 0 {
		problems = append(problems, c.file.Errorf("plugins.WorkloadAttestor", `none is configured; without one no workload can be recognised: add WorkloadAttestor "unix" {}`))
	}
	for _, p := range c.Plugins {
		if p.Cmd != "" && p.Enabled {
			problems = append(problems, p.Errorf("plugin_cmd: external plugins are not supported by this version; use a built-in one"))
		}
	}
	_, unread := c.checks()
	return config.Problems(append(problems, unread)...)
}

// checks reads the sections of the plugins that there are, and returns how to
// look whether they can be opened.
func (c *Config) checks() (looks []func() error, unread error) {
	var problems []error
	for _, p := range c.Plugins {
		if !p.Enabled || p.Cmd != "" {
			continue
		}
		var look func() error
		var err error
		switch p.Type {
		case typeKeyManager:
			look, err = chooseFrom(c, p, keyManagers)
		case typeNodeAttestor:
			look, err = chooseFrom(c, p, provers)
		case typeWorkloadAttestor:
			look, err = chooseFrom(c, p, attestors)
		}
		problems = append(problems, p.Wrap(err))
		if look != nil && err == nil {
			looks = append(looks, func() error { return p.Wrap(look()) })
		}
	}
	return looks, config.Problems(problems...)
}

// pluginNotices are the keys of workload attestors that have no effect. Validate
// has the problems.
func (c *Config) pluginNotices() []config.Notice {
	var all []config.Notice
	for _, p := range c.Plugins.OfType(typeWorkloadAttestor) {
		if read, ok := attestors[p.Name]; ok && p.Cmd == "" {
			found, _ := read(c, p)
			all = append(all, found.notices...)
		}
	}
	return all
}

func chooseFrom[T any](c *Config, p config.Plugin, from map[string]choose[T]) (look func() error, err error) {
	read, ok := from[p.Name]
	if !ok {
		return nil, nil // Plugins.Check said so.
	}
	found, err := read(c, p)
	return found.check, err
}

// noData is the section plugin_data of plugins that have no keys.
//
//credence:plugin_data agent KeyManager memory
//credence:plugin_data agent NodeAttestor join_token
type noData struct{}

func chooseMemory(_ *Config, p config.Plugin) (part[keys.Manager], error) {
	return part[keys.Manager]{open: func() (keys.Manager, error) { return memkey.New(), nil }}, p.Decode(&noData{})
}

// diskData is the section plugin_data of KeyManager "disk".
//
//credence:plugin_data agent KeyManager disk
type diskData struct {
	// Directory holds keys.json.
	Directory string `hcl:"directory" unset:"as data_dir"`
}

func chooseDisk(c *Config, p config.Plugin) (part[keys.Manager], error) {
	data := diskData{Directory: c.Agent.DataDir}
	if err := p.Decode(&data); err != nil {
		return part[keys.Manager]{}, err
	}
	path := filepath.Join(data.Directory, "keys.json")
	return part[keys.Manager]{
		open: func() (keys.Manager, error) { return diskkey.New(path) },
		check: func() error {
			if err := diskkey.Check(path); err != nil {
				return err
			}
			return preflight.Parent(path, c.Agent.DataDir)
		},
	}, nil
}

func chooseJoinToken(c *Config, p config.Plugin) (part[node.Prover], error) {
	return part[node.Prover]{open: func() (node.Prover, error) {
		token, err := c.joinToken()
		return jointoken.NewProver(token), err
	}}, p.Decode(&noData{})
}

// joinToken is the token that the configuration gives, or names the file of.
func (c *Config) joinToken() (string, error) {
	if c.Agent.JoinTokenFile == "" {
		return c.Agent.JoinToken, nil
	}
	data, err := os.ReadFile(c.Agent.JoinTokenFile)
	if err != nil {
		return "", c.file.Errorf("agent.join_token_file", "%w", err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" {
		return "", c.file.Errorf("agent.join_token_file", "%s is empty; write the output of `credence-server token generate` there, without Token:", c.Agent.JoinTokenFile)
	}
	return token, nil
}

func chooseX509POP(_ *Config, p config.Plugin) (part[node.Prover], error) {
	var data x509pop.ProverConfig
	if err := p.Decode(&data); err != nil {
		return part[node.Prover]{}, err
	}
	return part[node.Prover]{
		open:  func() (node.Prover, error) { return x509pop.NewProver(data), nil },
		check: data.CheckFiles,
	}, data.Validate()
}

func chooseK8sPSAT(_ *Config, p config.Plugin) (part[node.Prover], error) {
	var data k8spsat.ProverConfig
	if err := p.Decode(&data); err != nil {
		return part[node.Prover]{}, err
	}
	return part[node.Prover]{
		open:  func() (node.Prover, error) { return k8spsat.NewProver(data), nil },
		check: data.CheckFiles,
	}, data.Validate()
}

// makeAttestor makes a workload attestor of what the agent has: log, metrics,
// cache.
type makeAttestor = func(*Agent) (workload.Attestor, error)

func chooseUnix(_ *Config, p config.Plugin) (part[makeAttestor], error) {
	var data unix.Config
	if err := p.Decode(&data); err != nil {
		return part[makeAttestor]{}, err
	}
	return part[makeAttestor]{open: func() (makeAttestor, error) {
		return func(*Agent) (workload.Attestor, error) { return unix.New(data), nil }, nil
	}}, data.Validate()
}

func chooseK8s(_ *Config, p config.Plugin) (part[makeAttestor], error) {
	var data k8s.Config
	if err := p.Decode(&data); err != nil {
		return part[makeAttestor]{}, err
	}
	notices, refused := p.Unsupported(data)
	return part[makeAttestor]{
		open: func() (makeAttestor, error) {
			return func(a *Agent) (workload.Attestor, error) {
				return k8s.New(data, k8s.Options{
					Log: a.log, Metrics: a.registry,
					Needs: func(known attest.Selectors, missing func(attest.Selector) bool) bool {
						return a.cache.Needs(k8s.Name, known, missing)
					},
				})
			}, nil
		},
		check:   data.Check,
		notices: notices,
	}, config.Problems(refused, data.Validate())
}
