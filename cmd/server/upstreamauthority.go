package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

func upstreamTaint(p cli.Persona) *cobra.Command {
	return upstreamVerb(p, "taint", "Tainted", "Mark an upstream authority as not to be trusted: what descends from it is replaced at once", func(ctx context.Context, c authorityClient, id string) (proto.Message, string, error) {
		r, err := c.TaintX509UpstreamAuthority(ctx, &localauthorityv1.TaintX509UpstreamAuthorityRequest{SubjectKeyId: id})
		return r, r.GetUpstreamAuthoritySubjectKeyId(), err
	})
}

func upstreamRevoke(p cli.Persona) *cobra.Command {
	return upstreamVerb(p, "revoke", "Revoked", "Remove a tainted upstream authority from the bundle", func(ctx context.Context, c authorityClient, id string) (proto.Message, string, error) {
		r, err := c.RevokeX509UpstreamAuthority(ctx, &localauthorityv1.RevokeX509UpstreamAuthorityRequest{SubjectKeyId: id})
		return r, r.GetUpstreamAuthoritySubjectKeyId(), err
	})
}

func upstreamVerb(p cli.Persona, name, done, short string, call func(context.Context, authorityClient, string) (proto.Message, string, error)) *cobra.Command {
	var format *cli.Format
	var id *string
	cmd := verb(p, name, short, func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		if *id == "" {
			return cli.Hint(errors.New("the Subject Key ID of the X.509 upstream authority is required"), "`localauthority x509 show` shows it")
		}
		resp, got, err := call(ctx, localauthorityv1.NewLocalAuthorityClient(conn), *id)
		if err != nil {
			return fmt.Errorf("could not %s X.509 upstream authority: %w", name, err)
		}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
			out := printer{w: w}
			out.printf("%s X.509 upstream authority:\n", done)
			out.printf("  Subject Key ID: %s\n", got)
			return out.err
		}, resp)
	})
	format = cli.OutputFlag(cmd.Flags())
	id = cmd.Flags().String("subjectKeyID", "", "the Subject Key Identifier of the upstream authority's certificate")
	return cmd
}
