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
	flags.StringVar(&s.set.TrustBundleURL, "trustBundleUrl", "", "overrides agent.trust_bundle_url")
	flags.BoolVar(&s.set.LogSourceLocation, "logSourceLocation", false, "overrides agent.log_source_location")
	flags.StringVar(&s.set.RebootstrapMode, "rebootstrapMode", "", "overrides agent.rebootstrap_mode: never, auto or always")
	flags.DurationVar(&s.set.RebootstrapDelay, "rebootstrapDelay", 0, "overrides agent.rebootstrap_delay")
	flags.BoolVar(&s.set.DisableWorkloadAPI, "disableWorkloadAPI", false, "overrides agent.disable_workload_api")
	flags.BoolVar(&s.set.DisableSDSAPI, "disableSDSAPI", false, "overrides agent.disable_sds_api")
	return s
}

// load reads the file and applies the flags that were given. As in SPIRE, a
// flag that is given as "" or 0 leaves the file's value.
func (s *settings) load() (*agent.Config, error) {
	c, err := agent.Load(s.path, s.expandEnv)
	if err != nil {
		return nil, err
	}
	to := &c.Agent
	apply := map[string]struct {
		key string
		do  func()
	}{
		"dataDir":                       {"data_dir", func() { to.DataDir = s.set.DataDir }},
		"joinToken":                     {"join_token", func() { to.JoinToken, to.JoinTokenFile = s.set.JoinToken, "" }},
		"joinTokenFile":                 {"join_token_file", func() { to.JoinTokenFile, to.JoinToken = s.set.JoinTokenFile, "" }},
		"logFile":                       {"log_file", func() { to.LogFile = s.set.LogFile }},
		"logFormat":                     {"log_format", func() { to.LogFormat = s.set.LogFormat }},
		"logLevel":                      {"log_level", func() { to.LogLevel = s.set.LogLevel }},
		"logSourceLocation":             {"log_source_location", func() { to.LogSourceLocation = s.set.LogSourceLocation }},
		"serverAddress":                 {"server_address", func() { to.ServerAddress, to.ServerAddresses = s.set.ServerAddress, nil }},
		"serverPort":                    {"server_port", func() { to.ServerPort = s.set.ServerPort }},
		"socketPath":                    {"socket_path", func() { to.SocketPath = s.set.SocketPath }},
		"trustDomain":                   {"trust_domain", func() { to.TrustDomain = s.set.TrustDomain }},
		"trustBundle":                   {"trust_bundle_path", func() { to.TrustBundlePath = s.set.TrustBundlePath }},
		"trustBundleUrl":                {"trust_bundle_url", func() { to.TrustBundleURL = s.set.TrustBundleURL }},
		"trustBundleFormat":             {"trust_bundle_format", func() { to.TrustBundleFormat = s.set.TrustBundleFormat }},
		"allowUnauthenticatedVerifiers": {"allow_unauthenticated_verifiers", func() { to.AllowUnauthenticatedVerifiers = s.set.AllowUnauthenticatedVerifiers }},
		"insecureBootstrap":             {"insecure_bootstrap", func() { to.InsecureBootstrap = s.set.InsecureBootstrap }},
		"rebootstrapMode":               {"rebootstrap_mode", func() { to.RebootstrapMode = s.set.RebootstrapMode }},
		"rebootstrapDelay":              {"rebootstrap_delay", func() { to.RebootstrapDelay = s.set.RebootstrapDelay }},
		"disableWorkloadAPI":            {"disable_workload_api", func() { to.DisableWorkloadAPI = s.set.DisableWorkloadAPI }},
		"disableSDSAPI":                 {"disable_sds_api", func() { to.DisableSDSAPI = s.set.DisableSDSAPI }},
	}
	s.flags.Visit(func(f *pflag.Flag) {
		o, ok := apply[f.Name]
		if text := f.Value.String(); !ok || text == "" || text == "0" || text == "0s" {
			return
		}
		o.do()
		c.Override("agent."+o.key, "-"+f.Name)
	})
	if to.SocketPath == "" {
		to.SocketPath = s.persona.AgentSocket()
	}
	return c, nil
}

func runCommand(p cli.Persona) *cobra.Command {
	cmd := &cobra.Command{Use: "run", Short: "Run the agent", Args: cobra.NoArgs}
	s := newSettings(cmd.Flags(), p)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := s.load()
		if err != nil {
			return err
		}
		if err := c.Preflight(); err != nil {
			return err
		}
		return run(cmd.Context(), c)
	}
	return cmd
}

func run(ctx context.Context, c *agent.Config) error {
	return logged(ctx, c, func(ctx context.Context, o agent.Options) error {
		a, err := agent.New(c, o)
		if err != nil {
			return err
		}
		return a.Run(ctx)
	})
}

// logged serves with the log that the configuration asks for, until serve
// returns.
func logged(ctx context.Context, c *agent.Config, serve func(context.Context, agent.Options) error) (err error) {
	log, err := telemetry.NewLog(telemetry.LogConfig{Level: c.Agent.LogLevel, Format: c.Agent.LogFormat, File: c.Agent.LogFile, AddSource: c.Agent.LogSourceLocation})
	if err != nil {
		return fmt.Errorf("agent.log_file: %w", err)
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var group errgroup.Group
	group.Go(func() error { return log.Run(ctx) })
	group.Go(func() error {
		defer stop()
		return serve(ctx, agent.Options{Log: log.Logger(), LogLevel: log, Version: cli.Version()})
	})
	return group.Wait()
}
