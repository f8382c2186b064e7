package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
)

func loggerGet(p cli.Persona) *cobra.Command {
	return loggerVerb(p, "get", "Show what the server logs", func(ctx context.Context, c loggerv1.LoggerClient) (*types.Logger, error) {
		l, err := c.GetLogger(ctx, &loggerv1.GetLoggerRequest{})
		if err != nil {
			return nil, fmt.Errorf("error fetching logger: %w", err)
		}
		return l, nil
	})
}

func loggerReset(p cli.Persona) *cobra.Command {
	return loggerVerb(p, "reset", "Log again what the server's configuration says", func(ctx context.Context, c loggerv1.LoggerClient) (*types.Logger, error) {
		l, err := c.ResetLogLevel(ctx, &loggerv1.ResetLogLevelRequest{})
		if err != nil {
			return nil, fmt.Errorf("failed to reset logger: %w", err)
		}
		return l, nil
	})
}

func loggerSet(p cli.Persona) *cobra.Command {
	var level *string
	cmd := loggerVerb(p, "set", "Change what the server logs, until it is restarted", func(ctx context.Context, c loggerv1.LoggerClient) (*types.Logger, error) {
		if *level == "" {
			return nil, cli.Hint(errors.New("a value (-level) must be set"), "use one of "+cli.LogLevels)
		}
		wanted, err := cli.ParseLogLevel(*level)
		if err != nil {
			return nil, err
		}
		l, err := c.SetLogLevel(ctx, &loggerv1.SetLogLevelRequest{NewLevel: wanted})
		if err != nil {
			return nil, fmt.Errorf("failed to set log level: %w", err)
		}
		return l, nil
	})
	level = cmd.Flags().String("level", "", "the new level: "+cli.LogLevels)
	return cmd
}

func loggerVerb(p cli.Persona, name, short string, call func(context.Context, loggerv1.LoggerClient) (*types.Logger, error)) *cobra.Command {
	var format *cli.Format
	cmd := verb(p, name, short, func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		l, err := call(ctx, loggerv1.NewLoggerClient(conn))
		if err != nil {
			return err
		}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error { return cli.PrintLogger(w, l) }, l)
	})
	format = cli.OutputFlag(cmd.Flags())
	return cmd
}
