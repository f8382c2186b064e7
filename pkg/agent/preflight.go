package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/preflight"
	"github.com/credence-id/credence/pkg/unixsock"
	agentstatev1 "github.com/credence-id/credence/proto/agentstate/v1"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"
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
		if _, _, err := readSVID(filepath.Join(s.DataDir, svidFile)); !errors.Is(err, fs.ErrNotExist) {
			report("agent.data_dir", err)
		}
	}
	for key, path := range map[string]string{"agent.socket_path": s.SocketPath, "agent.admin_socket_path": s.AdminSocketPath} {
		if path != "" {
			report(key, unixsock.Check(path))
			report(key, preflight.Dir(filepath.Dir(path)))
		}
	}
	if s.CSI != nil && !s.CSI.OwnProcess {
		s.CSI.preflight(report)
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
// first contact, and keeps a bundle since that is still good, needs none.
func (c *Config) checkBundle() error {
	s := &c.Agent
	td, err := spiffeid.TrustDomainFromString(s.TrustDomain)
	if err != nil || s.TrustBundlePath == "" || s.TrustBundleURL != "" {
		return nil //nolint:nilerr // Validate says so
	}
	if keepsBundle(td, filepath.Join(s.DataDir, stateFile)) {
		return nil
	}
	_, err = loadBundle(td, s.TrustBundlePath, s.TrustBundleFormat)
	return err
}

// keepsBundle says whether the state of an earlier run has something that the
// server can be verified with.
func keepsBundle(td spiffeid.TrustDomain, path string) bool {
	data, err := os.ReadFile(path)
	kept := new(agentstatev1.State)
	if err != nil || proto.Unmarshal(data, kept) != nil {
		return false
	}
	for _, b := range kept.GetBundles() {
		t := &trust{td: td, news: make(chan struct{}, 1)}
		if b.GetBundle().GetTrustDomain() == td.Name() && t.learn(b.GetBundle()) == nil {
			return t.usable(time.Now())
		}
	}
	return false
}
