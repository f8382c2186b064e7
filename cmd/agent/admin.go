package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/debug/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/logger/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
)

// adminVerb makes a command that makes one call over the agent's admin socket.
func adminVerb(p cli.Persona, name, short string, do func(context.Context, io.Writer, *cli.Format, grpc.ClientConnInterface) error) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs}
	socket := cli.AgentAdminSocket(cmd.Flags(), p)
	format := cli.OutputFlag(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		conn, err := socket.Conn()
		if err != nil {
			return err
		}
		defer conn.Close() //nolint:errcheck // the process ends
		return do(cmd.Context(), cmd.OutOrStdout(), format, conn)
	}
	return cmd
}

func debugGetInfo(p cli.Persona) *cobra.Command {
	return adminVerb(p, "getinfo", "Show how long the agent has been up, what it holds, and its own SVID",
		func(ctx context.Context, w io.Writer, format *cli.Format, conn grpc.ClientConnInterface) error {
			info, err := debugv1.NewDebugClient(conn).GetInfo(ctx, &debugv1.GetInfoRequest{})
			if err != nil {
				return err
			}
			return format.Print(w, func(w io.Writer) error {
				out := printer{w: w}
				out.printInfo(info)
				return out.err
			}, info)
		})
}

// printInfo writes the answer with SPIRE's labels.
func (p *printer) printInfo(info *debugv1.GetInfoResponse) {
	sync := "(never)"
	if at := info.GetLastSyncSuccess(); at != 0 {
		sync = rfc3339(at)
	}
	p.printf("Agent Debug Info:\n")
	p.printf("  Uptime:                          %s\n", time.Duration(info.GetUptime())*time.Second)
	p.printf("  Last Sync Success:               %s\n", sync)
	p.printf("  Cached X.509 SVIDs:              %d\n", info.GetCachedX509SvidsCount())
	p.printf("  Cached JWT SVIDs:                %d\n", info.GetCachedJwtSvidsCount())
	p.printf("  Cached SVID Store X.509 SVIDs:   %d\n", info.GetCachedSvidstoreX509SvidsCount())
	if len(info.GetSvidChain()) == 0 {
		return
	}
	p.printf("  SVID Chain:\n")
	for i, cert := range info.GetSvidChain() {
		id := "(none)"
		if c := cert.GetId(); c != nil {
			id = "spiffe://" + c.GetTrustDomain() + c.GetPath()
		}
		p.printf("    [%d] SPIFFE ID:  %s\n", i, id)
		p.printf("        Subject:    %s\n", cert.GetSubject())
		p.printf("        Expires At: %s\n", rfc3339(cert.GetExpiresAt()))
	}
}

func rfc3339(seconds int64) string { return time.Unix(seconds, 0).UTC().Format(time.RFC3339) }

func loggerGet(p cli.Persona) *cobra.Command {
	return loggerVerb(p, "get", "Show what the agent logs", "error fetching logger", func(ctx context.Context, c loggerv1.LoggerClient) (*types.Logger, error) {
		return c.GetLogger(ctx, &loggerv1.GetLoggerRequest{})
	})
}

func loggerReset(p cli.Persona) *cobra.Command {
	return loggerVerb(p, "reset", "Log again what the agent's configuration says", "failed to reset logger", func(ctx context.Context, c loggerv1.LoggerClient) (*types.Logger, error) {
		return c.ResetLogLevel(ctx, &loggerv1.ResetLogLevelRequest{})
	})
}

func loggerSet(p cli.Persona) *cobra.Command {
	var wanted types.LogLevel
	cmd := loggerVerb(p, "set", "Change what the agent logs, until it is restarted", "failed to set log level", func(ctx context.Context, c loggerv1.LoggerClient) (*types.Logger, error) {
		return c.SetLogLevel(ctx, &loggerv1.SetLogLevelRequest{NewLevel: wanted})
	})
	level := cmd.Flags().String("level", "", "the new level: "+cli.LogLevels)
	cmd.PreRunE = func(*cobra.Command, []string) (err error) {
		if *level == "" {
			return cli.Hint(errors.New("a value (-level) must be set"), "use one of "+cli.LogLevels)
		}
		wanted, err = cli.ParseLogLevel(*level)
		return err
	}
	return cmd
}

func loggerVerb(p cli.Persona, name, short, problem string, call func(context.Context, loggerv1.LoggerClient) (*types.Logger, error)) *cobra.Command {
	return adminVerb(p, name, short, func(ctx context.Context, w io.Writer, format *cli.Format, conn grpc.ClientConnInterface) error {
		l, err := call(ctx, loggerv1.NewLoggerClient(conn))
		if err != nil {
			return fmt.Errorf("%s: %w", problem, err)
		}
		return format.Print(w, func(w io.Writer) error { return cli.PrintLogger(w, l) }, l)
	})
}
