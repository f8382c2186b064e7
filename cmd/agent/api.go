package main

import (
	"context"
	"fmt"
	"io"
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
	flags.Var(&c.timeout, "timeout", "how long to wait for each answer: 500ms, 5s or 5 (seconds); 0 for ever")
	return c
}

// call runs do with a client of the Workload API.
func (c *client) call(cmd *cobra.Command, do func(context.Context, workload.SpiffeWorkloadAPIClient) error) error {
	conn, err := c.socket.Conn()
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // the process ends
	return do(cmd.Context(), workload.NewSpiffeWorkloadAPIClient(conn))
}

// ask is the context of one call: it has the header which the Workload API
// demands, and the time that -timeout gives.
func (c *client) ask(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	if c.timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Duration(c.timeout))
}

// seconds is a duration flag that takes a bare number too.
type seconds time.Duration

// String is the duration as Go writes it.
func (s *seconds) String() string { return time.Duration(*s).String() }

// Type is what usage texts call it.
func (s *seconds) Type() string { return "time" }

// Set reads the flag's value.
func (s *seconds) Set(text string) error {
	d, err := time.ParseDuration(text)
	if err != nil {
		bare, bareErr := time.ParseDuration(text + "s")
		if bareErr != nil {
			return err
		}
		d = bare
	}
	*s = seconds(d)
	return nil
}

// printer writes lines and keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}
