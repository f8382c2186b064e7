package server

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/preflight"
	"github.com/credence-id/credence/pkg/unixsock"
)

// Preflight is Validate, and reports also what is wrong with the files and
// directories that the configuration names: all that Run would refuse but for
// what only shows when it is used, such as a port that another process has. It
// changes nothing and opens no socket, so that it can be used beside a running
// server.
func (c *Config) Preflight() error {
	s := c.Server.withDefaults()
	problems := []error{c.Validate()}
	report := func(key string, err error) {
		if err != nil {
			problems = append(problems, c.file.Errorf(key, "%w", err))
		}
	}
	var unusable error
	if s.DataDir != "" {
		unusable = preflight.Dir(s.DataDir)
		report("server.data_dir", unusable)
		if _, err := readServerID(filepath.Join(s.DataDir, serverIDFile)); unusable == nil && !errors.Is(err, fs.ErrNotExist) {
			report("server.data_dir", err)
		}
	}
	if c.AdminListener == nil {
		report("server.socket_path", unixsock.Check(s.SocketPath))
		report("server.socket_path", preflight.Dir(filepath.Dir(s.SocketPath)))
	}
	if s.LogFile != "" && c.Logger == nil {
		report("server.log_file", preflight.LogFile(s.LogFile))
	}
	chosen, _ := c.choose() // Validate has its problems.
	for _, check := range chosen.checks {
		if err := check(); unusable == nil || !preflight.Follows(err) {
			problems = append(problems, err)
		}
	}
	env := verifierEnv{authorities: func() []*x509.Certificate { return nil }, log: slog.New(slog.DiscardHandler)}
	for _, open := range chosen.verifiers {
		if open == nil {
			continue // Validate said why.
		}
		_, err := open(env)
		problems = append(problems, err)
	}
	return config.Problems(problems...)
}
