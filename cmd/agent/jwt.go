package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func validateJWTCommand(p cli.Persona) *cobra.Command {
	cmd := &cobra.Command{Use: "jwt", Short: "Validate a JWT-SVID", Args: cobra.NoArgs}
	c := newClient(cmd.Flags(), p)
	format := cli.OutputFlag(cmd.Flags())
	audience := cmd.Flags().String("audience", "", "audience the token must be for")
	token := cmd.Flags().String("svid", "", "the JWT-SVID")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case *audience == "":
			return cli.Hint(errors.New("audience must be specified"), "-audience is who you are: a token for somebody else is not valid here")
		case *token == "":
			return cli.Hint(errors.New("svid must be specified"), "-svid takes the token's text")
		}
		var resp *workload.ValidateJWTSVIDResponse
		err := c.call(cmd, func(ctx context.Context, api workload.SpiffeWorkloadAPIClient) (err error) {
			ctx, cancel := c.ask(ctx)
			defer cancel()
			resp, err = api.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: *audience, Svid: *token})
			return err
		})
		if s := status.Convert(err); s.Code() == codes.InvalidArgument {
			return fmt.Errorf("SVID is not valid: %s", s.Message())
		}
		if err != nil {
			return fmt.Errorf("unable to validate JWT SVID: %w", err)
		}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
			claims, err := json.Marshal(resp.GetClaims().AsMap()) // always the same text, unlike protojson's
			if err != nil {
				return fmt.Errorf("printing the claims: %w", err)
			}
			_, err = fmt.Fprintf(w, "SVID is valid.\nSPIFFE ID : %s\nClaims    : %s\n", resp.GetSpiffeId(), claims)
			return err
		}, resp)
	}
	return cmd
}
