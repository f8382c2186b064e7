package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/preflight"
	"github.com/credence-id/credence/pkg/unixsock"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Preflight is Validate, and reports also what is wrong with the files and
// directories that the configuration names: all that Run would refuse but for
// what only shows when it is used, such as a port that another process has, or
// a server that does not answer. It changes nothing and opens no socket, so that
// it can be used beside a running agent.
func (c *Config) Preflight() error {
	problems := []error{c.Validate()}
	report := func(key string, err error) {
		if err != nil {
			problems = append(problems, c.file.Errorf(key, "%w", err))
		}
	}
	s := &c.Agent
	unusable := preflight.Dir(s.DataDir)
	report("agent.data_dir", unusable)
	if unusable == nil {
		report("agent.data_dir", checkPrivate(filepath.Join(s.DataDir, stateFile)))
	}
	for key, path := range map[string]string{"agent.socket_path": s.SocketPath, "agent.admin_socket_path": s.AdminSocketPath} {
		if path != "" {
			report(key, unixsock.Check(path))
			report(key, preflight.Dir(filepath.Dir(path)))
		}
	}
	if s.LogFile != "" {
		report("agent.log_file", preflight.LogFile(s.LogFile))
	}
	report("agent.trust_bundle_path", c.checkBundle())
	_, err := c.joinToken()
	problems = append(problems, err)
	looks, _ := c.checks() // Validate has their problems.
	for _, look := range looks {
		if err := look(); unusable == nil || !preflight.Follows(err) {
			problems = append(problems, err)
		}
	}
	return config.Problems(problems...)
}

// checkBundle reads the bundle of the first contact. An agent that has had its
// first contact starts without.
func (c *Config) checkBundle() error {
	s := &c.Agent
	td, err := spiffeid.TrustDomainFromString(s.TrustDomain)
	if err != nil || s.TrustBundlePath == "" || s.TrustBundleURL != "" {
		return nil //nolint:nilerr // Validate says so
	}
	if _, err := os.Stat(filepath.Join(s.DataDir, stateFile)); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	_, err = loadBundle(td, s.TrustBundlePath, s.TrustBundleFormat)
	return err
}
