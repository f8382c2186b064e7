package main

import (
	"context"
	"io"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/operatorapi"
	"github.com/credence-id/credence/pkg/store/dump"
	operatorv1 "github.com/credence-id/credence/proto/operator/v1"
	"github.com/spf13/cobra"
)

func storeInfo(p cli.Persona) *cobra.Command {
	var sizes *bool
	cmd, f := storeVerb("info", "Say which store the server works on, and what is in it", func(ctx context.Context, cmd *cobra.Command, f *storeFlags) error {
		conn, err := f.conn()
		if err != nil {
			return err
		}
		if conn == nil {
			return f.infoOffline(ctx, cmd)
		}
		defer conn.Close() //nolint:errcheck // the process ends
		info, err := operatorv1.NewOperatorClient(conn).StoreInfo(ctx, &operatorv1.StoreInfoRequest{Sizes: *sizes})
		if err != nil {
			return err
		}
		return f.printStore(cmd.OutOrStdout(), info)
	})
	f.online(p)
	sizes = cmd.Flags().Bool("sizes", false, "count everything, and its bytes, which reads the whole store; with -config that is always done")
	return cmd
}

// infoOffline looks into the store of a server that is stopped.
func (f *storeFlags) infoOffline(ctx context.Context, cmd *cobra.Command) (err error) {
	s, err := f.open(ctx, cmd, f.config, false)
	if err != nil {
		return err
	}
	defer closeStore(s, &err)
	if err := dump.CheckWhole(ctx, s); err != nil {
		return dumpError(err)
	}
	head, err := s.Head(ctx)
	if err != nil {
		return err
	}
	tables, err := registry.CountTables(ctx, s)
	if err != nil {
		return err
	}
	return f.printStore(cmd.OutOrStdout(), operatorapi.Describe(s.Info(), head, tables))
}

func (f *storeFlags) printStore(w io.Writer, info *operatorv1.StoreInfoResponse) error {
	return f.format.Print(w, func(w io.Writer) error {
		out := printer{w: w}
		out.printf("Engine    : %s\n", info.GetEngine())
		out.printf("Store ID  : %s\n", info.GetStoreId())
		out.printf("Format    : %d\n", info.GetFormat())
		out.printf("Revision  : %d\n", info.GetRevision())
		for _, t := range info.GetTables() {
			out.printf("  %-24s: %d", t.GetName(), t.GetCount())
			if t.GetBytes() > 0 {
				out.printf(", %d bytes", t.GetBytes())
			}
			out.printf("\n")
		}
		switch {
		case f.config != "":
		case info.GetLastBackup() == nil:
			out.printf("Backup    : none by this server since it was started; `credence-server store backup -out FILE` makes one\n")
		default:
			out.printf("Backup    : %s, of revision %d\n", info.GetLastBackup().AsTime().UTC().Format(timeLayout), info.GetLastBackupRevision())
		}
		return out.err
	}, info)
}
