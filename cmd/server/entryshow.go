package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// entryPage is how many entries one call asks for: their messages stay far
// below gRPC's usual 4 MB.
const entryPage = 500

func entryShow(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var f *entryFilter
	var entryID *string
	cmd := verb(p, "show", "Show entries", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		all := &entryv1.ListEntriesResponse{}
		client := entryv1.NewEntryClient(conn)
		if *entryID != "" {
			if f.given() {
				return errors.New("the -entryID flag can't be combined with others")
			}
			e, err := client.GetEntry(ctx, &entryv1.GetEntryRequest{Id: *entryID})
			if err != nil {
				return fmt.Errorf("error fetching entry ID %s: %w", *entryID, err)
			}
			all.Entries = append(all.Entries, e)
		} else {
			filter, err := f.build()
			if err != nil {
				return err
			}
			if all.Entries, err = listEntries(ctx, client, filter); err != nil {
				return fmt.Errorf("error fetching entries: %w", err)
			}
		}
		sortEntries(all.GetEntries())
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
			out := printer{w: w}
			out.printf("Found %s\n", counted(len(all.GetEntries()), "entry", "entries"))
			for _, e := range all.GetEntries() {
				printEntry(&out, e)
			}
			return out.err
		}, all)
	})
	format = cli.OutputFlag(cmd.Flags())
	entryID = cmd.Flags().String("entryID", "", "the entry with this ID")
	f = newEntryFilter(cmd.Flags())
	return cmd
}

// listEntries asks for all entries that a filter lets through, page by page.
func listEntries(ctx context.Context, client entryv1.EntryClient, filter *entryv1.ListEntriesRequest_Filter) ([]*types.Entry, error) {
	var all []*types.Entry
	for token := ""; ; {
		page, err := client.ListEntries(ctx, &entryv1.ListEntriesRequest{PageSize: entryPage, PageToken: token, Filter: filter})
		if err != nil {
			return nil, err
		}
		all = append(all, page.GetEntries()...)
		if token = page.GetNextPageToken(); token == "" {
			return all, nil
		}
	}
}

func entryCount(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var f *entryFilter
	cmd := verb(p, "count", "Count entries", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		filter, err := f.build()
		if err != nil {
			return err
		}
		resp, err := entryv1.NewEntryClient(conn).CountEntries(ctx, &entryv1.CountEntriesRequest{Filter: &entryv1.CountEntriesRequest_Filter{
			BySpiffeId: filter.GetBySpiffeId(), ByParentId: filter.GetByParentId(), BySelectors: filter.GetBySelectors(),
			ByFederatesWith: filter.GetByFederatesWith(), ByHint: filter.GetByHint(), ByDownstream: filter.GetByDownstream(),
		}})
		if err != nil {
			return err
		}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
			_, err := fmt.Fprintln(w, counted(resp.GetCount(), "registration entry", "registration entries"))
			return err
		}, resp)
	})
	format = cli.OutputFlag(cmd.Flags())
	f = newEntryFilter(cmd.Flags())
	return cmd
}

// entryFilter are the flags of show and count.
type entryFilter struct {
	parentID, spiffeID, hint               string
	selectors, federatesWith               []string
	matchSelectorsOn, matchFederatesWithOn string
	downstream                             bool
}

func newEntryFilter(flags *pflag.FlagSet) *entryFilter {
	f := new(entryFilter)
	flags.StringVar(&f.parentID, "parentID", "", "entries with this parent")
	flags.StringVar(&f.spiffeID, "spiffeID", "", "entries for this SPIFFE ID")
	flags.StringVar(&f.hint, "hint", "", "entries with this hint")
	flags.BoolVar(&f.downstream, "downstream", false, "only entries of nested servers")
	flags.StringArrayVar(&f.selectors, "selector", nil, "entries with this type:value; may be repeated")
	flags.StringArrayVar(&f.federatesWith, "federatesWith", nil, "entries that federate with this trust domain; may be repeated")
	flags.StringVar(&f.matchSelectorsOn, "matchSelectorsOn", "superset", "how selectors match: "+matches)
	flags.StringVar(&f.matchFederatesWithOn, "matchFederatesWithOn", "superset", "how trust domains match: "+matches)
	return f
}

// given says whether anything was filtered for that -entryID excludes.
func (f *entryFilter) given() bool {
	return f.parentID != "" || f.spiffeID != "" || len(f.selectors) > 0
}

// build is the filter that the flags say. Not to ask for nested servers is to
// ask for all, for SPIRE's servers and ours.
func (f *entryFilter) build() (*entryv1.ListEntriesRequest_Filter, error) {
	filter := &entryv1.ListEntriesRequest_Filter{ByDownstream: wrapperspb.Bool(f.downstream)}
	var err error
	if f.parentID != "" {
		if filter.ByParentId, err = parseID("parentID", f.parentID); err != nil {
			return nil, fmt.Errorf("error parsing parent ID %q: %w", f.parentID, err)
		}
	}
	if f.spiffeID != "" {
		if filter.BySpiffeId, err = parseID("spiffeID", f.spiffeID); err != nil {
			return nil, fmt.Errorf("error parsing SPIFFE ID %q: %w", f.spiffeID, err)
		}
	}
	if len(f.selectors) > 0 {
		match, ok := matchNamed(f.matchSelectorsOn, types.SelectorMatch_MatchBehavior_value)
		if !ok {
			return nil, cli.Hint(fmt.Errorf("match behavior %q unknown", f.matchSelectorsOn), "-matchSelectorsOn is "+matches)
		}
		selectors, err := parseSelectors(f.selectors, func(_ string, err error) error { return fmt.Errorf("error parsing selectors: %w", err) })
		if err != nil {
			return nil, err
		}
		filter.BySelectors = &types.SelectorMatch{Selectors: selectors, Match: types.SelectorMatch_MatchBehavior(match)}
	}
	if len(f.federatesWith) > 0 {
		match, ok := matchNamed(f.matchFederatesWithOn, types.FederatesWithMatch_MatchBehavior_value)
		if !ok {
			return nil, cli.Hint(fmt.Errorf("match behavior %q unknown", f.matchFederatesWithOn), "-matchFederatesWithOn is "+matches)
		}
		filter.ByFederatesWith = &types.FederatesWithMatch{TrustDomains: f.federatesWith, Match: types.FederatesWithMatch_MatchBehavior(match)}
	}
	if f.hint != "" {
		filter.ByHint = wrapperspb.String(f.hint)
	}
	return filter, nil
}
