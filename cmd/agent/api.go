package main

import (
	"context"
	"fmt"
	"time"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/metadata"
)

// client is how the verbs of api reach the Workload API.
type client struct {
	socket  *cli.Socket
	timeout seconds
}

func newClient(flags *pflag.FlagSet, p cli.Persona) *client {
	c := &client{socket: cli.AgentSocket(flags, p), timeout: seconds(5 * time.Second)}
	flags.Var(&c.timeout, "timeout", "how long to wait for an answer: 500ms, 5s or 5 (seconds)")
	return c
}

// call runs do with a client, and with a context that has the header which the
// Workload API demands.
func (c *client) call(cmd *cobra.Command, do func(context.Context, workload.SpiffeWorkloadAPIClient) error) error {
	conn, err := c.socket.Dial(cmd.Context())
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // the process ends
	ctx, cancel := context.WithTimeout(cmd.Context(), time.Duration(c.timeout))
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	return do(ctx, workload.NewSpiffeWorkloadAPIClient(conn))
}

// seconds is a duration flag that takes a bare number, as SPIRE's does.
type seconds time.Duration

func (s *seconds) String() string { return time.Duration(*s).String() }

func (s *seconds) Type() string { return "duration" }

func (s *seconds) Set(text string) error {
	d, err := time.ParseDuration(text)
	if err != nil {
		if d, err = time.ParseDuration(text + "s"); err != nil {
			return fmt.Errorf("%q is not a duration such as 5s", text)
		}
	}
	*s = seconds(d)
	return nil
}
