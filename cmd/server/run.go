package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

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
	flags.BoolVar(&s.set.LogSourceLocation, "logSourceLocation", false, "overrides server.log_source_location: file and line in each log line")
	flags.StringVar(&s.set.LogLevel, "logLevel", "", "overrides server.log_level: debug, info, warn or error")
	return s
}

// load reads the file, applies the flags that were given, and validates.
func (s *settings) load() (*server.Config, error) {
	c, err := server.Load(s.path, s.expandEnv)
	if errors.Is(err, fs.ErrNotExist) {
		path, _ := filepath.Abs(s.path) //nolint:errcheck // without it the path is the one that was given
		return nil, fmt.Errorf("could not find config file %s: please use the -config flag", cmp.Or(path, s.path))
	}
	if err != nil {
		return nil, err
	}
	to := &c.Server
	apply := map[string]func(){
		"bindAddress": func() { to.BindAddress = s.set.BindAddress },
		"serverPort":  func() { to.BindPort = s.set.BindPort },
		"dataDir":     func() { to.DataDir = s.set.DataDir },
		"socketPath":  func() { to.SocketPath = s.set.SocketPath },
		"trustDomain": func() { to.TrustDomain = s.set.TrustDomain },
		"logFile":     func() { to.LogFile = s.set.LogFile },
		"logFormat":   func() { to.LogFormat = s.set.LogFormat },
		"logLevel":    func() { to.LogLevel = s.set.LogLevel },

		"logSourceLocation": func() { to.LogSourceLocation = s.set.LogSourceLocation },
	}
	s.flags.Visit(func(f *pflag.Flag) {
		if do, ok := apply[f.Name]; ok {
			do()
		}
	})
	return c, c.Validate()
}

func runCommand(cli.Persona) *cobra.Command {
	cmd := &cobra.Command{Use: "run", Short: "Run the server", Args: cobra.NoArgs}
	s := newSettings(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := s.load()
		if err != nil {
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
