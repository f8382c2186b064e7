package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/credence-id/credence/pkg/agent"
	"github.com/credence-id/credence/pkg/cli"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
)

// settings are the flags of run and validate: the configuration file, and what
// overrides it.
type settings struct {
	persona   cli.Persona
	flags     *pflag.FlagSet
	path      string
	expandEnv bool
	set       agent.Section
}

func newSettings(flags *pflag.FlagSet, p cli.Persona) *settings {
	s := &settings{persona: p, flags: flags}
	flags.StringVar(&s.path, "config", "conf/agent/agent.conf", "path of the configuration file")
	flags.BoolVar(&s.expandEnv, "expandEnv", false, "expand ${VAR} and $VAR in the configuration file")
	flags.StringVar(&s.set.DataDir, "dataDir", "", "overrides agent.data_dir")
	flags.StringVar(&s.set.JoinToken, "joinToken", "", "overrides agent.join_token")
	flags.StringVar(&s.set.JoinTokenFile, "joinTokenFile", "", "overrides agent.join_token_file")
	flags.StringVar(&s.set.LogFile, "logFile", "", "overrides agent.log_file")
	flags.StringVar(&s.set.LogFormat, "logFormat", "", "overrides agent.log_format: text or json")
	flags.StringVar(&s.set.LogLevel, "logLevel", "", "overrides agent.log_level: debug, info, warn or error")
	flags.StringVar(&s.set.ServerAddress, "serverAddress", "", "overrides agent.server_address")
	flags.IntVar(&s.set.ServerPort, "serverPort", 0, "overrides agent.server_port")
	flags.StringVar(&s.set.SocketPath, "socketPath", "", "overrides agent.socket_path")
	flags.StringVar(&s.set.TrustDomain, "trustDomain", "", "overrides agent.trust_domain")
	flags.StringVar(&s.set.TrustBundlePath, "trustBundle", "", "overrides agent.trust_bundle_path")
	flags.StringVar(&s.set.TrustBundleFormat, "trustBundleFormat", "", "overrides agent.trust_bundle_format: pem or spiffe")
	flags.BoolVar(&s.set.AllowUnauthenticatedVerifiers, "allowUnauthenticatedVerifiers", false, "overrides agent.allow_unauthenticated_verifiers")
	flags.BoolVar(&s.set.InsecureBootstrap, "insecureBootstrap", false, "overrides agent.insecure_bootstrap")
	return s
}

// load reads the file, applies the flags that were given, and validates.
func (s *settings) load() (*agent.Config, error) {
	c, err := agent.Load(s.path, s.expandEnv)
	if err != nil {
		return nil, err
	}
	to := &c.Agent
	apply := map[string]func(){
		"dataDir":                       func() { to.DataDir = s.set.DataDir },
		"joinToken":                     func() { to.JoinToken, to.JoinTokenFile = s.set.JoinToken, "" },
		"joinTokenFile":                 func() { to.JoinTokenFile, to.JoinToken = s.set.JoinTokenFile, "" },
		"logFile":                       func() { to.LogFile = s.set.LogFile },
		"logFormat":                     func() { to.LogFormat = s.set.LogFormat },
		"logLevel":                      func() { to.LogLevel = s.set.LogLevel },
		"serverAddress":                 func() { to.ServerAddress = s.set.ServerAddress },
		"serverPort":                    func() { to.ServerPort = s.set.ServerPort },
		"socketPath":                    func() { to.SocketPath = s.set.SocketPath },
		"trustDomain":                   func() { to.TrustDomain = s.set.TrustDomain },
		"trustBundle":                   func() { to.TrustBundlePath = s.set.TrustBundlePath },
		"trustBundleFormat":             func() { to.TrustBundleFormat = s.set.TrustBundleFormat },
		"allowUnauthenticatedVerifiers": func() { to.AllowUnauthenticatedVerifiers = s.set.AllowUnauthenticatedVerifiers },
		"insecureBootstrap":             func() { to.InsecureBootstrap = s.set.InsecureBootstrap },
	}
	s.flags.Visit(func(f *pflag.Flag) {
		if do, ok := apply[f.Name]; ok {
			do()
		}
	})
	if to.SocketPath == "" {
		to.SocketPath = s.persona.AgentSocket()
	}
	return c, c.Validate()
}

func runCommand(p cli.Persona) *cobra.Command {
	cmd := &cobra.Command{Use: "run", Short: "Run the agent", Args: cobra.NoArgs}
	s := newSettings(cmd.Flags(), p)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := s.load()
		if err != nil {
			return err
		}
		return run(cmd.Context(), c)
	}
	return cmd
}

func run(ctx context.Context, c *agent.Config) (err error) {
	log, err := telemetry.NewLog(telemetry.LogConfig{Level: c.Agent.LogLevel, Format: c.Agent.LogFormat, File: c.Agent.LogFile})
	if err != nil {
		return fmt.Errorf("agent.log_file: %w", err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	a, err := agent.New(c, agent.Options{Log: log.Logger(), LogLevel: log, Version: cli.Version()})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var group errgroup.Group
	group.Go(func() error { return log.Run(ctx) })
	group.Go(func() error {
		defer stop()
		return a.Run(ctx)
	})
	return group.Wait()
}
