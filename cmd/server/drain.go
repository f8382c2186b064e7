package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/credence-id/credence/pkg/cli"
	operatorv1 "github.com/credence-id/credence/proto/operator/v1"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
)

// drainFlags are the flags of drain.
type drainFlags struct {
	over, timeout time.Duration
	undo          bool
	format        *cli.Format
	progress      *cli.Progress
}

func drainCommand(p cli.Persona) *cobra.Command {
	f := &drainFlags{}
	cmd := verb(p, "drain", "Move this server's agents to the others, before it is stopped", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		return f.run(ctx, cmd, operatorv1.NewOperatorClient(conn))
	})
	cmd.Long = `Asks each agent of this server that has another one to go there, spread over a time
so that those are not overrun, and waits for the last one. From then on, and until
the server is stopped or drain -undo, agents come here only if no other server
takes them. Agents that know no other server stay.

Interrupted, it asks no further agents; run it again to go on. Exit codes: 0 no
agent is left that could go; 1 some are, after -timeout.`
	flags := cmd.Flags()
	flags.DurationVar(&f.over, "over", 0, "the time over which agents are asked to go; default what 500 a second take")
	flags.DurationVar(&f.timeout, "timeout", 30*time.Second, "how long to wait for the last ones after that")
	flags.BoolVar(&f.undo, "undo", false, "let agents come again")
	f.format = cli.OutputFlag(flags)
	f.progress = cli.ProgressFlag(flags)
	return cmd
}

func (f *drainFlags) run(ctx context.Context, cmd *cobra.Command, client operatorv1.OperatorClient) error {
	req := &operatorv1.DrainRequest{Wait: durationpb.New(f.timeout), Undo: f.undo}
	if cmd.Flags().Changed("over") {
		req.Over = durationpb.New(f.over)
	}
	stream, err := client.Drain(ctx, req)
	if err != nil {
		return err
	}
	defer f.progress.End()
	first, gone := -1, 0
	for {
		m, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return errors.New("the server ended the call before its end")
		case err != nil:
			return err
		case m.GetDone():
			return f.report(cmd, m)
		case first < 0:
			first = int(m.GetLeft())
			f.progress.Start(cmd.ErrOrStderr(), "agents that have gone", first)
		default:
			f.progress.Add(first - int(m.GetLeft()) - gone)
			gone = first - int(m.GetLeft())
		}
	}
}

func (f *drainFlags) report(cmd *cobra.Command, m *operatorv1.DrainResponse) error {
	f.progress.End()
	err := f.format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
		out := printer{w: w}
		switch {
		case f.undo:
			out.printf("Agents may come again.\n")
		case m.GetLeft() == 0:
			out.printf("Drained: no agent is left that has another server.\n")
		}
		if m.GetStaying() > 0 && !f.undo {
			out.printf("%s.\n", counted(m.GetStaying(), "agent has no other server and stays", "agents have no other server and stay"))
		}
		return out.err
	}, m)
	if err == nil && m.GetLeft() > 0 && !f.undo {
		err = cli.Hint(fmt.Errorf("%s still here that could go elsewhere", counted(m.GetLeft(), "agent is", "agents are")),
			"run it again to wait longer; agents go by themselves when the server is stopped")
	}
	return err
}
