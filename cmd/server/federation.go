package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func federationCreate(p cli.Persona) *cobra.Command {
	return federationWrite(p, "create", "Say where to fetch the bundle of another trust domain", func(ctx context.Context, c trustdomainv1.TrustDomainClient, asked []*types.FederationRelationship) (proto.Message, []federationResult, error) {
		resp, err := c.BatchCreateFederationRelationship(ctx, &trustdomainv1.BatchCreateFederationRelationshipRequest{FederationRelationships: asked})
		return resp, results(resp.GetResults()), err
	})
}

func federationUpdate(p cli.Persona) *cobra.Command {
	return federationWrite(p, "update", "Change where to fetch the bundle of another trust domain", func(ctx context.Context, c trustdomainv1.TrustDomainClient, asked []*types.FederationRelationship) (proto.Message, []federationResult, error) {
		resp, err := c.BatchUpdateFederationRelationship(ctx, &trustdomainv1.BatchUpdateFederationRelationshipRequest{FederationRelationships: asked})
		return resp, results(resp.GetResults()), err
	})
}

// federationResult is what became of one relationship of a batch.
type federationResult interface {
	GetStatus() *types.Status
	GetFederationRelationship() *types.FederationRelationship
}

func results[R federationResult](in []R) []federationResult {
	out := make([]federationResult, len(in))
	for i, r := range in {
		out[i] = r
	}
	return out
}

// federationWrite makes create or update, which differ in the call.
func federationWrite(p cli.Persona, name, short string, call func(context.Context, trustdomainv1.TrustDomainClient, []*types.FederationRelationship) (proto.Message, []federationResult, error)) *cobra.Command {
	var format *cli.Format
	var f *federationFlags
	cmd := verb(p, name, short, func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		asked, err := f.relationships(cmd.InOrStdin())
		if err != nil {
			return err
		}
		resp, got, err := call(ctx, trustdomainv1.NewTrustDomainClient(conn), asked)
		if err != nil {
			return fmt.Errorf("request failed: %w", err)
		}
		if len(got) > len(asked) {
			return fmt.Errorf("the server answered %d results for %d relationships", len(got), len(asked))
		}
		failed := 0
		for _, r := range got {
			if code(r.GetStatus()) != codes.OK {
				failed++
			}
		}
		err = format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
			return printFederationResults(w, cmd.ErrOrStderr(), name, asked, got)
		}, resp)
		if err != nil || failed == 0 {
			return err
		}
		return failure(p, format, fmt.Errorf("failed to %s one or more federation relationships", name))
	})
	format = cli.OutputFlag(cmd.Flags())
	f = newFederationFlags(cmd.Flags())
	return cmd
}

// printFederationResults writes what is done, then what failed as it was asked
// for. A relationship that failed begins with an empty line on w too, as in
// SPIRE.
func printFederationResults(w, stderr io.Writer, verb string, asked []*types.FederationRelationship, got []federationResult) error {
	out, bad := printer{w: w}, printer{w: stderr}
	for _, r := range got {
		if code(r.GetStatus()) == codes.OK {
			out.printf("\n")
			printRelationship(&out, r.GetFederationRelationship())
		}
	}
	for i, r := range got {
		if code(r.GetStatus()) != codes.OK {
			out.printf("\n")
			bad.printf("Failed to %s the following federation relationship (code: %s, msg: %q):\n", verb, code(r.GetStatus()), r.GetStatus().GetMessage())
			printRelationship(&bad, asked[i])
		}
	}
	return errors.Join(out.err, bad.err)
}

func federationList(p cli.Persona) *cobra.Command {
	var format *cli.Format
	cmd := verb(p, "list", "List where the bundles of other trust domains are fetched", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		all := &trustdomainv1.ListFederationRelationshipsResponse{}
		var err error
		if all.FederationRelationships, err = listRelationships(ctx, trustdomainv1.NewTrustDomainClient(conn)); err != nil {
			return fmt.Errorf("error listing federation relationship: %w", err)
		}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
			out := printer{w: w}
			out.printf("Found %s\n", counted(len(all.GetFederationRelationships()), "federation relationship", "federation relationships"))
			for _, r := range all.GetFederationRelationships() {
				out.printf("\n")
				printRelationship(&out, r)
			}
			return out.err
		}, all)
	})
	format = cli.OutputFlag(cmd.Flags())
	return cmd
}

// listRelationships gets all relationships, page by page; each may come with a
// bundle.
func listRelationships(ctx context.Context, client trustdomainv1.TrustDomainClient) ([]*types.FederationRelationship, error) {
	var all []*types.FederationRelationship
	for token := ""; ; {
		page, err := client.ListFederationRelationships(ctx, &trustdomainv1.ListFederationRelationshipsRequest{PageSize: bundlePage, PageToken: token})
		if err != nil {
			return nil, err
		}
		all = append(all, page.GetFederationRelationships()...)
		if token = page.GetNextPageToken(); token == "" {
			return all, nil
		}
	}
}

func federationShow(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var trustDomain *string
	cmd := verb(p, "show", "Show where the bundle of another trust domain is fetched", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		if *trustDomain == "" {
			return cli.Hint(errors.New("a trust domain name is required"), "`federation list` shows the trust domains")
		}
		r, err := trustdomainv1.NewTrustDomainClient(conn).GetFederationRelationship(ctx, &trustdomainv1.GetFederationRelationshipRequest{TrustDomain: *trustDomain})
		if err != nil {
			return fmt.Errorf("error showing federation relationship: %w", err)
		}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
			out := printer{w: w}
			out.printf("Found a federation relationship with trust domain %s:\n\n", *trustDomain)
			printRelationship(&out, r)
			return out.err
		}, r)
	})
	format = cli.OutputFlag(cmd.Flags())
	trustDomain = cmd.Flags().String("trustDomain", "", "the trust domain's name")
	return cmd
}

func federationDelete(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var id *string
	cmd := verb(p, "delete", "Stop fetching the bundle of another trust domain; the bundle stays", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		if *id == "" {
			return cli.Hint(errors.New("id is required"), "`federation list` shows the trust domains")
		}
		resp, err := trustdomainv1.NewTrustDomainClient(conn).BatchDeleteFederationRelationship(ctx, &trustdomainv1.BatchDeleteFederationRelationshipRequest{TrustDomains: []string{*id}})
		if err != nil {
			return fmt.Errorf("failed to delete federation relationship: %w", err)
		}
		var refused error
		for _, r := range resp.GetResults() {
			if code(r.GetStatus()) != codes.OK {
				refused = fmt.Errorf("failed to delete federation relationship %q: %s", r.GetTrustDomain(), r.GetStatus().GetMessage())
			}
		}
		return printResult(cmd, p, format, resp, "federation relationship deleted.", refused)
	})
	format = cli.OutputFlag(cmd.Flags())
	id = trustDomainFlag(cmd.Flags())
	return cmd
}

func federationRefresh(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var id *string
	cmd := verb(p, "refresh", "Fetch the bundle of another trust domain now", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		if *id == "" {
			return cli.Hint(errors.New("id is required"), "`federation list` shows the trust domains")
		}
		_, err := trustdomainv1.NewTrustDomainClient(conn).RefreshBundle(ctx, &trustdomainv1.RefreshBundleRequest{TrustDomain: *id})
		switch status.Code(err) {
		case codes.OK:
			return printResult(cmd, p, format, &types.Status{Message: codes.OK.String()}, "Bundle refreshed", nil)
		case codes.NotFound:
			return fmt.Errorf("there is no federation relationship with trust domain %q", *id)
		default:
			return fmt.Errorf("failed to refresh bundle: %w", err)
		}
	})
	format = cli.OutputFlag(cmd.Flags())
	id = trustDomainFlag(cmd.Flags())
	return cmd
}

// printRelationship writes a relationship with SPIRE's labels.
func printRelationship(p *printer, r *types.FederationRelationship) {
	p.printf("Trust domain              : %s\n", r.GetTrustDomain())
	p.printf("Bundle endpoint URL       : %s\n", r.GetBundleEndpointUrl())
	switch profile := r.GetBundleEndpointProfile().(type) {
	case *types.FederationRelationship_HttpsWeb:
		p.printf("Bundle endpoint profile   : %s\n", profileWeb)
	case *types.FederationRelationship_HttpsSpiffe:
		p.printf("Bundle endpoint profile   : %s\n", profileSPIFFE)
		p.printf("Endpoint SPIFFE ID        : %s\n", profile.HttpsSpiffe.GetEndpointSpiffeId())
	}
}
