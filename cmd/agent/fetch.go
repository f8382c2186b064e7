package main

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
)

// fetchCommand is `api fetch`, which alone does what `api fetch x509` does.
func fetchCommand(p cli.Persona) *cobra.Command {
	cmd := fetchX509Command(p)
	cmd.Use = "fetch"
	cmd.Short = "Fetch SVIDs; alone, X509-SVIDs"
	return cmd
}

func fetchX509Command(p cli.Persona) *cobra.Command {
	cmd := &cobra.Command{Use: "x509", Short: "Fetch X509-SVIDs", Args: cobra.NoArgs}
	c := newClient(cmd.Flags(), p)
	format := cli.OutputFlag(cmd.Flags())
	silent := cmd.Flags().Bool("silent", false, "do not print the SVIDs, if -output is pretty")
	dir := cmd.Flags().String("write", "", "write SVIDs, keys and bundles as PEM to this folder, if -output is pretty")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		start := time.Now()
		var resp *workload.X509SVIDResponse
		err := c.call(cmd, func(ctx context.Context, api workload.SpiffeWorkloadAPIClient) error {
			ctx, cancel := c.ask(ctx)
			defer cancel()
			stream, err := api.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
			if err == nil {
				resp, err = stream.Recv()
			}
			return err
		})
		if err != nil {
			return err
		}
		took := time.Since(start)
		pretty := func(w io.Writer) error {
			svids, federated, err := readX509(resp)
			if err != nil {
				return err
			}
			out := &printer{w: w}
			if !*silent {
				out.printX509(svids, federated, took)
			}
			if *dir != "" {
				out.writeX509(*dir, svids, federated)
			}
			return out.err
		}
		return format.Print(cmd.OutOrStdout(), pretty, resp)
	}
	return cmd
}

// commaList is a flag that is a list; the last one given counts.
type commaList []string

// String is the list as it is written.
func (l *commaList) String() string { return strings.Join(*l, ",") }

// Type is what usage texts call it.
func (l *commaList) Type() string { return "list" }

// Set reads the flag's value.
func (l *commaList) Set(text string) error {
	*l = strings.Split(text, ",")
	return nil
}

func fetchJWTCommand(p cli.Persona) *cobra.Command {
	cmd := &cobra.Command{Use: "jwt", Short: "Fetch JWT-SVIDs", Args: cobra.NoArgs}
	c := newClient(cmd.Flags(), p)
	format := cli.OutputFlag(cmd.Flags())
	cmd.Flags().Var(format, "format", "deprecated; use -output")
	var audience commaList
	cmd.Flags().Var(&audience, "audience", "comma separated list of audience values")
	spiffeID := cmd.Flags().String("spiffeID", "", "SPIFFE ID of the subject; default all")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(audience) == 0 {
			return cli.Hint(errors.New("audience must be specified"), "-audience names who the token is for, such as -audience my-service")
		}
		var tokens *workload.JWTSVIDResponse
		var jwks *workload.JWTBundlesResponse
		err := c.call(cmd, func(ctx context.Context, api workload.SpiffeWorkloadAPIClient) (err error) {
			if jwks, err = c.fetchBundles(ctx, api); err != nil {
				return err
			}
			ctx, cancel := c.ask(ctx)
			defer cancel()
			tokens, err = api.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: audience, SpiffeId: *spiffeID})
			return err
		})
		if err != nil {
			return err
		}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error { return printJWT(w, tokens, jwks) }, tokens, jwks)
	}
	return cmd
}

func (c *client) fetchBundles(ctx context.Context, api workload.SpiffeWorkloadAPIClient) (*workload.JWTBundlesResponse, error) {
	ctx, cancel := c.ask(ctx)
	defer cancel()
	stream, err := api.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
	if err != nil {
		return nil, err
	}
	return stream.Recv()
}

func printJWT(w io.Writer, tokens *workload.JWTSVIDResponse, jwks *workload.JWTBundlesResponse) error {
	p := printer{w: w}
	for _, s := range tokens.GetSvids() {
		p.printf("token(%s):\n\t%s\n", s.GetSpiffeId(), s.GetSvid())
		if s.GetHint() != "" {
			p.printf("hint(%s):\n\t%s\n", s.GetSpiffeId(), s.GetHint())
		}
	}
	for _, td := range slices.Sorted(maps.Keys(jwks.GetBundles())) {
		p.printf("bundle(%s):\n\t%s\n", td, jwks.GetBundles()[td])
	}
	return p.err
}
