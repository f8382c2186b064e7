package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func watchCommand(p cli.Persona) *cobra.Command {
	cmd := &cobra.Command{Use: "watch", Short: "Print X509-SVIDs as they are renewed, until interrupted", Args: cobra.NoArgs}
	socket := cli.AgentSocket(cmd.Flags(), p)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		path, err := socket.Path()
		if err != nil {
			return err
		}
		if path, err = filepath.Abs(path); err != nil {
			return err
		}
		w := &watcher{cmd: cmd, hints: !p.SPIRE, last: time.Now()}
		err = workloadapi.WatchX509Context(cmd.Context(), w, workloadapi.WithAddr("unix://"+path))
		if errors.Is(err, context.Canceled) || cmd.Context().Err() != nil {
			return nil // interrupted, as asked
		}
		return err
	}
	return cmd
}

type watcher struct {
	cmd   *cobra.Command
	hints bool // SPIRE's does not print them here
	last  time.Time
}

// OnX509ContextUpdate prints one update.
func (w *watcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	federated := make(bundles)
	own := make(bundles)
	for _, b := range c.Bundles.Bundles() {
		own[b.TrustDomain().Name()] = b.X509Authorities()
	}
	var svids []x509SVID
	for _, s := range c.SVIDs {
		td := s.ID.TrustDomain().Name()
		svid := x509SVID{id: s.ID.String(), chain: s.Certificates, bundle: own[td]}
		if w.hints {
			svid.hint = s.Hint
		}
		svids = append(svids, svid)
		for _, name := range own.names() {
			if name != td {
				federated[name] = own[name]
			}
		}
	}
	out := printer{w: w.cmd.OutOrStdout()}
	out.printX509(svids, federated, time.Since(w.last))
	if out.err != nil {
		w.OnX509ContextWatchError(out.err)
	}
	w.last = time.Now()
}

// OnX509ContextWatchError prints why there is no update; the watch goes on.
func (w *watcher) OnX509ContextWatchError(err error) {
	if w.cmd.Context().Err() == nil {
		fmt.Fprintln(w.cmd.ErrOrStderr(), err)
	}
}
