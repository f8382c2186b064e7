package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

type (
	authorityClient = localauthorityv1.LocalAuthorityClient
	authorityState  = localauthorityv1.AuthorityState

	// authorityCall is a call about one authority of a kind; prepare takes no
	// ID.
	authorityCall func(ctx context.Context, c authorityClient, id string) (proto.Message, *authorityState, error)
)

// authorityStates is the answer of show.
type authorityStates interface {
	proto.Message
	GetActive() *authorityState
	GetPrepared() *authorityState
	GetOld() *authorityState
}

// authorityKind is one of the kinds of authority and its calls; they are in
// authoritykinds.go.
type authorityKind struct {
	name, title                      string // on the command line, and in what is printed
	upstream                         bool   // what is printed tells the upstream authority
	show                             func(context.Context, authorityClient) (authorityStates, error)
	prepare, activate, taint, revoke authorityCall
}

// localAuthority makes the verbs about the authorities of this server, by kind.
func localAuthority(p cli.Persona) *cobra.Command {
	kinds := []authorityKind{x509Authorities, jwtAuthorities, witAuthorities}
	nouns := make([]*cobra.Command, 0, len(kinds))
	for _, k := range kinds {
		nouns = append(nouns, noun(k.name, "The "+k.title+" authorities of this server",
			k.showCommand(p),
			k.prepareCommand(p),
			k.command(p, "activate", "Activated", "Sign with the prepared authority from now on; what was active becomes old", k.activate),
			k.command(p, "taint", "Tainted", "Mark an old authority as not to be trusted: what it signed is replaced at once", k.taint),
			k.command(p, "revoke", "Revoked", "Remove an old authority from the bundle: what it signed is worth nothing", k.revoke)))
	}
	return noun("localauthority", "Rotate, taint and revoke the keys this server signs with", nouns...)
}

func (k authorityKind) showCommand(p cli.Persona) *cobra.Command {
	var format *cli.Format
	cmd := verb(p, "show", "Show the active, prepared and old authority", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		states, err := k.show(ctx, localauthorityv1.NewLocalAuthorityClient(conn))
		if err != nil {
			return fmt.Errorf("could not get %s authorities: %w", k.title, err)
		}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
			out := printer{w: w}
			k.printNamed(&out, "Active", "active", states.GetActive())
			out.printf("\n")
			k.printNamed(&out, "Prepared", "prepared", states.GetPrepared())
			out.printf("\n")
			k.printNamed(&out, "Old", "old", states.GetOld())
			return out.err
		}, states)
	})
	format = cli.OutputFlag(cmd.Flags())
	return cmd
}

func (k authorityKind) printNamed(out *printer, label, word string, s *authorityState) {
	out.printf("%s %s authority:\n", label, k.title)
	if s == nil {
		out.printf("  No %s %s authority found\n", word, k.title)
		return
	}
	k.print(out, s)
}

// print writes an authority with SPIRE's labels.
func (k authorityKind) print(out *printer, s *authorityState) {
	out.printf("  Authority ID: %s\n", s.GetAuthorityId())
	out.printf("  Expires at: %s\n", time.Unix(s.GetExpiresAt(), 0).UTC())
	switch {
	case !k.upstream:
	case s.GetUpstreamAuthoritySubjectKeyId() != "":
		out.printf("  Upstream authority Subject Key ID: %s\n", s.GetUpstreamAuthoritySubjectKeyId())
	default:
		out.printf("  Upstream authority ID: No upstream authority\n")
	}
}

func (k authorityKind) prepareCommand(p cli.Persona) *cobra.Command {
	var format *cli.Format
	cmd := verb(p, "prepare", "Make the next authority and publish it in the bundle", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		return k.call(ctx, cmd, conn, format, "prepare", "Prepared", "", k.prepare)
	})
	format = cli.OutputFlag(cmd.Flags())
	return cmd
}

// command makes a verb about one authority; done is what it prints.
func (k authorityKind) command(p cli.Persona, name, done, short string, call authorityCall) *cobra.Command {
	var format *cli.Format
	var id *string
	cmd := verb(p, name, short, func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		if *id == "" {
			return cli.Hint(errors.New("an authority ID is required"), fmt.Sprintf("`localauthority %s show` shows them", k.name))
		}
		return k.call(ctx, cmd, conn, format, name, done, *id, call)
	})
	format = cli.OutputFlag(cmd.Flags())
	id = cmd.Flags().String("authorityID", "", "the authority's ID")
	return cmd
}

func (k authorityKind) call(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface, format *cli.Format, name, done, id string, call authorityCall) error {
	resp, state, err := call(ctx, localauthorityv1.NewLocalAuthorityClient(conn), id)
	if err != nil {
		return fmt.Errorf("could not %s %s authority: %w", name, k.title, err)
	}
	return format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
		out := printer{w: w}
		out.printf("%s %s authority:\n", done, k.title)
		k.print(&out, state)
		return out.err
	}, resp)
}
