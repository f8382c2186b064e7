package main

import (
	"context"
	"io"
	"time"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	"google.golang.org/grpc"
)

func debugGetInfo(p cli.Persona) *cobra.Command {
	var format *cli.Format
	cmd := verb(p, "getinfo", "Show how long the server has been up, what it holds, and its own SVID", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		info, err := debugv1.NewDebugClient(conn).GetInfo(ctx, &debugv1.GetInfoRequest{})
		if err != nil {
			return err
		}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
			out := printer{w: w}
			printInfo(&out, info)
			return out.err
		}, info)
	})
	format = cli.OutputFlag(cmd.Flags())
	return cmd
}

// printInfo writes the answer with SPIRE's labels.
func printInfo(out *printer, info *debugv1.GetInfoResponse) {
	out.printf("Server Debug Info:\n")
	out.printf("  Uptime:                  %s\n", time.Duration(info.GetUptime())*time.Second)
	out.printf("  Registered Agents:       %d\n", info.GetAgentsCount())
	out.printf("  Registration Entries:    %d\n", info.GetEntriesCount())
	out.printf("  Federated Bundles:       %d\n", info.GetFederatedBundlesCount())
	if len(info.GetSvidChain()) == 0 {
		return
	}
	out.printf("  SVID Chain:\n")
	for i, cert := range info.GetSvidChain() {
		id := "(none)"
		if cert.GetId() != nil {
			id = idText(cert.GetId())
		}
		out.printf("    [%d] SPIFFE ID:  %s\n", i, id)
		out.printf("        Subject:    %s\n", cert.GetSubject())
		out.printf("        Expires At: %s\n", time.Unix(cert.GetExpiresAt(), 0).UTC().Format(time.RFC3339))
	}
}
