package main

import (
	"github.com/credence-id/credence/pkg/cli"
	"github.com/credence-id/credence/pkg/server"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// settings are the flags of run and validate: the configuration file, and what
// overrides it.
type settings struct {
	flags     *pflag.FlagSet
	path      string
	expandEnv bool
	set       server.Settings
}

func newSettings(flags *pflag.FlagSet) *settings {
	s := &settings{flags: flags}
	flags.StringVar(&s.path, "config", "conf/server/server.conf", "path of the configuration file")
	flags.BoolVar(&s.expandEnv, "expandEnv", false, "expand ${VAR} and $VAR in the configuration file")
	flags.StringVar(&s.set.BindAddress, "bindAddress", "", "overrides server.bind_address")
	flags.IntVar(&s.set.BindPort, "serverPort", 0, "overrides server.bind_port")
	flags.StringVar(&s.set.DataDir, "dataDir", "", "overrides server.data_dir")
	flags.StringVar(&s.set.SocketPath, "socketPath", "", "overrides server.socket_path")
	flags.StringVar(&s.set.TrustDomain, "trustDomain", "", "overrides server.trust_domain")
	flags.StringVar(&s.set.LogFile, "logFile", "", "overrides server.log_file")
	flags.StringVar(&s.set.LogFormat, "logFormat", "", "overrides server.log_format: text or json")
	flags.StringVar(&s.set.LogLevel, "logLevel", "", "overrides server.log_level: debug, info, warn or error")
	flags.BoolVar(&s.set.LogSourceLocation, "logSourceLocation", false, "overrides server.log_source_location")
	return s
}

// load reads the file and applies the flags that were given. As in SPIRE, a
// flag that is given as "" or 0 leaves the file's value.
func (s *settings) load() (*server.Config, error) {
	c, err := server.Load(s.path, s.expandEnv)
	if err != nil {
		return nil, cli.ConfigError(s.path, err)
	}
	to := &c.Server
	apply := map[string]struct {
		key string
		do  func()
	}{
		"bindAddress":       {"bind_address", func() { to.BindAddress = s.set.BindAddress }},
		"serverPort":        {"bind_port", func() { to.BindPort = s.set.BindPort }},
		"dataDir":           {"data_dir", func() { to.DataDir = s.set.DataDir }},
		"socketPath":        {"socket_path", func() { to.SocketPath = s.set.SocketPath }},
		"trustDomain":       {"trust_domain", func() { to.TrustDomain = s.set.TrustDomain }},
		"logFile":           {"log_file", func() { to.LogFile = s.set.LogFile }},
		"logFormat":         {"log_format", func() { to.LogFormat = s.set.LogFormat }},
		"logLevel":          {"log_level", func() { to.LogLevel = s.set.LogLevel }},
		"logSourceLocation": {"log_source_location", func() { to.LogSourceLocation = s.set.LogSourceLocation }},
	}
	s.flags.Visit(func(f *pflag.Flag) {
		o, ok := apply[f.Name]
		if !ok || f.Value.String() == "" || f.Value.String() == "0" {
			return
		}
		o.do()
		c.Override("server."+o.key, "-"+f.Name)
	})
	return c, nil
}

func runCommand(cli.Persona) *cobra.Command {
	cmd := &cobra.Command{Use: "run", Short: "Run the server", Args: cobra.NoArgs}
	s := newSettings(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := s.load()
		if err != nil {
			return err
		}
		if err := c.Preflight(); err != nil {
			return err
		}
		srv, err := server.New(*c)
		if err != nil {
			return err
		}
		return srv.Run(cmd.Context())
	}
	return cli.BareErrors(cmd)
}
