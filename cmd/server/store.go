package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/credence-id/credence/pkg/server"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/dump"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func storeCommand(p cli.Persona) *cobra.Command {
	return noun("store", "Back up, restore and move what the server remembers",
		storeBackup(p), storeVerify(p), storeRestore(p), storeCopy(p), storeInfo(p))
}

// storeFlags are those of the store verbs that ask a running server, or work on
// the store of one that is stopped.
type storeFlags struct {
	socket    *cli.Socket // nil: the verb works on stopped servers' stores only
	flags     *pflag.FlagSet
	config    string
	expandEnv bool
	format    *cli.Format
	progress  *cli.Progress
}

// storeVerb makes a command; what it does is do's.
func storeVerb(name, short string, do func(context.Context, *cobra.Command, *storeFlags) error) (*cobra.Command, *storeFlags) {
	cmd := &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs}
	f := &storeFlags{flags: cmd.Flags(), format: cli.OutputFlag(cmd.Flags()), progress: cli.ProgressFlag(cmd.Flags())}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		defer f.progress.End()
		return do(cmd.Context(), cmd, f)
	}
	return cmd, f
}

// online adds the socket of a running server to the flags.
func (f *storeFlags) online(p cli.Persona) {
	f.socket = cli.ServerSocket(f.flags, p)
	f.offline("config", "work on the store of this configuration, of a server that is stopped, in place of asking one that runs")
}

// offline adds the configuration of a server to the flags.
func (f *storeFlags) offline(name, usage string) {
	f.flags.StringVar(&f.config, name, "", usage)
	f.flags.BoolVar(&f.expandEnv, "expandEnv", false, "expand ${VAR} and $VAR in configuration files")
}

// conn connects to the server that is asked; nil: -config says that none is.
func (f *storeFlags) conn() (*cli.Conn, error) {
	if f.config == "" {
		return f.socket.Conn()
	}
	if f.flags.Changed("socketPath") || f.flags.Changed("instance") {
		return nil, cli.Hint(errors.New("-config and -socketPath exclude each other"),
			"-socketPath asks a server that runs, -config works on the store of one that is stopped")
	}
	return nil, nil //nolint:nilnil // as it says
}

// open opens the store of the configuration at path.
func (f *storeFlags) open(ctx context.Context, cmd *cobra.Command, path string, create bool) (store.Store, error) {
	c, err := server.Load(path, f.expandEnv)
	if err != nil {
		return nil, cli.ConfigError(path, err)
	}
	log, err := telemetry.NewLog(telemetry.LogConfig{Level: "warn", Output: cmd.ErrOrStderr()})
	if err != nil {
		return nil, err
	}
	s, err := c.OpenStore(ctx, create, log.Logger())
	switch {
	case errors.Is(err, store.ErrLocked) && f.socket != nil:
		return nil, cli.Hint(err, "a server works on it: leave -config out to ask that server, or stop it first")
	case errors.Is(err, store.ErrLocked):
		return nil, cli.Hint(err, "a server works on it: stop it first")
	case errors.Is(err, server.ErrNoStore):
		return nil, cli.Hint(err, "is "+path+" the configuration of the server whose store is wanted?")
	case err != nil:
		return nil, err
	}
	return s, nil
}

// counting shows the keys that are done, of a total that may not be known.
func (f *storeFlags) counting(cmd *cobra.Command, what string, total int) dump.Progress {
	f.progress.Start(cmd.ErrOrStderr(), what, total)
	done := 0
	return func(sum dump.Summary) {
		f.progress.Add(sum.Keys - done)
		done = sum.Keys
	}
}

// dumpError adds the next step to an error of package dump.
func dumpError(err error) error {
	switch {
	case errors.Is(err, dump.ErrNotEmpty):
		return cli.Hint(err, "what is in it is left alone; with DataStore \"bolt\" move its file away, with \"etcd\" choose another prefix")
	case errors.Is(err, dump.ErrIncomplete):
		return cli.Hint(err, "an earlier restore or copy into this store did not end: run that again")
	case errors.Is(err, dump.ErrDamaged):
		return cli.Hint(err, "nothing can be restored from it: use another backup")
	case errors.Is(err, dump.ErrFormat):
		return cli.Hint(err, "backups are made by `credence-server store backup`")
	}
	return err
}

// broken says what a restore or copy that did not end has left.
func broken(err error) error {
	if errors.Is(err, dump.ErrNotEmpty) || err == nil {
		return dumpError(err)
	}
	return cli.Hint(fmt.Errorf("%w: the store is incomplete, and no server takes it", err), "run the same command again: it begins anew")
}

// filled is what restore and copy have done.
type filled struct {
	// From is what was read, To the store that was made of it.
	From description `json:"from"`
	To   description `json:"to"`
	Keys int         `json:"keys"`
	// Bytes of keys and values.
	Bytes int64 `json:"bytes"`
}

// description is a store, or the store that a backup is of.
type description struct {
	Engine   string         `json:"engine"`
	StoreID  string         `json:"store_id"`
	Revision store.Revision `json:"revision,omitempty"`
	Time     string         `json:"time,omitempty"`
}

func newFilled(sum dump.Summary, to store.Info) filled {
	return filled{
		From: describe(sum), To: description{Engine: to.Engine, StoreID: to.ID},
		Keys: sum.Keys, Bytes: sum.Bytes,
	}
}

func describe(sum dump.Summary) description {
	return description{Engine: sum.Engine, StoreID: sum.StoreID, Revision: sum.Revision, Time: sum.Time.UTC().Format(timeLayout)}
}

const timeLayout = "2006-01-02T15:04:05Z"

func (f *storeFlags) printFilled(w io.Writer, did string, r filled) error {
	return f.format.PrintValue(w, func(w io.Writer) error {
		out := printer{w: w}
		out.printf("%s and compared %d keys, %d bytes\n", did, r.Keys, r.Bytes)
		out.printf("From      : %s store %s at revision %d, %s\n", r.From.Engine, r.From.StoreID, r.From.Revision, r.From.Time)
		out.printf("Into      : %s store %s\n", r.To.Engine, r.To.StoreID)
		return out.err
	}, r)
}

// closeStore adds the error of closing to err.
func closeStore(s store.Store, err *error) { *err = errors.Join(*err, s.Close()) }

// absent says that there is no file at path, or why it is not to be replaced.
func absent(path string, overwrite bool) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file", path)
	case !overwrite:
		return cli.Hint(fmt.Errorf("%s is there already", path), "choose another name, or add -overwrite")
	}
	return nil
}
