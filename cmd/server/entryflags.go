package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/pflag"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// entryFlags are the flags of create and update that say what the entry is.
type entryFlags struct {
	entryID, parentID, spiffeID, hint   string
	selectors, federatesWith, dns       []string
	x509TTL, jwtTTL                     int32
	expiry                              int64
	admin, downstream, storeSVID, node  bool
	disableX509SVIDPrefetch, includeJTI bool
}

func newEntryFlags(flags *pflag.FlagSet) *entryFlags {
	f := new(entryFlags)
	flags.StringVar(&f.entryID, "entryID", "", "the entry's ID; create makes one if it is not given")
	flags.StringVar(&f.parentID, "parentID", "", "SPIFFE ID of the agent, alias or entry it is delegated to")
	flags.StringVar(&f.spiffeID, "spiffeID", "", "the SPIFFE ID to issue")
	flags.StringArrayVar(&f.selectors, "selector", nil, "type:value the workload must have; may be repeated")
	flags.StringArrayVar(&f.federatesWith, "federatesWith", nil, "trust domain whose bundle the workload gets; may be repeated")
	flags.StringArrayVar(&f.dns, "dns", nil, "DNS name in the X509-SVID; may be repeated")
	flags.Int32Var(&f.x509TTL, "x509SVIDTTL", 0, "lifetime of X509-SVIDs, in seconds; 0: the server's default")
	flags.Int32Var(&f.jwtTTL, "jwtSVIDTTL", 0, "lifetime of JWT-SVIDs, in seconds; 0: the server's default")
	flags.Int64Var(&f.expiry, "entryExpiry", 0, "when the entry vanishes, in seconds since 1970; 0: never")
	flags.BoolVar(&f.admin, "admin", false, "the identity may use the server's management APIs")
	flags.BoolVar(&f.downstream, "downstream", false, "the identity is that of a nested server")
	flags.BoolVar(&f.storeSVID, "storeSVID", false, "SVIDs go to a store, not to workloads")
	flags.StringVar(&f.hint, "hint", "", "tells a workload's identities apart")
	flags.BoolVar(&f.disableX509SVIDPrefetch, "disableX509SVIDPrefetch", false, "agents make X509-SVIDs on demand only")
	flags.BoolVar(&f.includeJTI, "jwtSVIDIncludeJTI", false, "JWT-SVIDs have a unique jti and are not cached")
	return f
}

func (f *entryFlags) allowNode(flags *pflag.FlagSet) {
	flags.BoolVar(&f.node, "node", false, "the entry is an alias: it gives matching nodes this SPIFFE ID")
}

// entry checks the flags, in SPIRE's words, and makes the entry they say.
func (f *entryFlags) entry() (*types.Entry, error) {
	switch {
	case len(f.selectors) == 0:
		return nil, cli.Hint(errors.New("at least one selector is required"), "such as -selector unix:uid:1000")
	case f.node && len(f.federatesWith) > 0:
		return nil, errors.New("node entries can not federate")
	case f.parentID == "" && !f.node:
		return nil, cli.Hint(errors.New("a parent ID is required if the node flag is not set"), "`agent list` shows the agents an entry can be parented on")
	case f.spiffeID == "":
		return nil, errors.New("a SPIFFE ID is required")
	case f.x509TTL < 0:
		return nil, errors.New("a positive x509-SVID TTL is required")
	case f.jwtTTL < 0:
		return nil, errors.New("a positive JWT-SVID TTL is required")
	}
	id, err := parseID("spiffeID", f.spiffeID)
	if err != nil {
		return nil, err
	}
	parent := &types.SPIFFEID{TrustDomain: id.GetTrustDomain(), Path: "/spire/server"}
	if !f.node {
		if parent, err = parseID("parentID", f.parentID); err != nil {
			return nil, err
		}
	}
	selectors, err := parseSelectors(f.selectors)
	if err != nil {
		return nil, err
	}
	e := &types.Entry{
		Id: f.entryID, SpiffeId: id, ParentId: parent, Selectors: selectors,
		X509SvidTtl: f.x509TTL, JwtSvidTtl: f.jwtTTL, FederatesWith: f.federatesWith, DnsNames: f.dns,
		Admin: f.admin, Downstream: f.downstream, StoreSvid: f.storeSVID, Hint: f.hint, ExpiresAt: f.expiry,
	}
	if f.disableX509SVIDPrefetch || f.includeJTI {
		e.AdditionalAttributes = &types.Entry_AdditionalAttributes{
			DisableX509SvidPrefetch: f.disableX509SVIDPrefetch, JwtSvidIncludeJti: f.includeJTI,
		}
	}
	return e, nil
}

func (f *entryFlags) mergeAttributes(e, now *types.Entry) {
	have, want := now.GetAdditionalAttributes(), e.GetAdditionalAttributes()
	want.DisableX509SvidPrefetch = f.disableX509SVIDPrefetch || have.GetDisableX509SvidPrefetch()
	want.JwtSvidIncludeJti = f.includeJTI || have.GetJwtSvidIncludeJti()
}

// entryFilter are the flags of show and count.
type entryFilter struct {
	flags                                  *pflag.FlagSet
	parentID, spiffeID, hint               string
	selectors, federatesWith               []string
	matchSelectorsOn, matchFederatesWithOn string
	downstream                             bool
}

func newEntryFilter(flags *pflag.FlagSet) *entryFilter {
	f := &entryFilter{flags: flags}
	flags.StringVar(&f.parentID, "parentID", "", "entries with this parent")
	flags.StringVar(&f.spiffeID, "spiffeID", "", "entries for this SPIFFE ID")
	flags.StringVar(&f.hint, "hint", "", "entries with this hint")
	flags.BoolVar(&f.downstream, "downstream", false, "entries of nested servers")
	flags.StringArrayVar(&f.selectors, "selector", nil, "entries with this type:value; may be repeated")
	flags.StringArrayVar(&f.federatesWith, "federatesWith", nil, "entries that federate with this trust domain; may be repeated")
	flags.StringVar(&f.matchSelectorsOn, "matchSelectorsOn", "superset", "how selectors match: "+matches)
	flags.StringVar(&f.matchFederatesWithOn, "matchFederatesWithOn", "superset", "how trust domains match: "+matches)
	return f
}

// given says whether anything was filtered for.
func (f *entryFilter) given() bool {
	return f.parentID != "" || f.spiffeID != "" || len(f.selectors) > 0
}

func (f *entryFilter) build() (*entryv1.ListEntriesRequest_Filter, error) {
	filter := &entryv1.ListEntriesRequest_Filter{}
	var err error
	if f.parentID != "" {
		if filter.ByParentId, err = parseID("parentID", f.parentID); err != nil {
			return nil, err
		}
	}
	if f.spiffeID != "" {
		if filter.BySpiffeId, err = parseID("spiffeID", f.spiffeID); err != nil {
			return nil, err
		}
	}
	if filter.BySelectors, err = selectorMatch(f.selectors, f.matchSelectorsOn); err != nil {
		return nil, err
	}
	if len(f.federatesWith) > 0 {
		match, err := matchNamed("matchFederatesWithOn", f.matchFederatesWithOn, types.FederatesWithMatch_MatchBehavior_value)
		if err != nil {
			return nil, err
		}
		filter.ByFederatesWith = &types.FederatesWithMatch{TrustDomains: f.federatesWith, Match: types.FederatesWithMatch_MatchBehavior(match)}
	}
	if f.hint != "" {
		filter.ByHint = wrapperspb.String(f.hint)
	}
	if f.flags.Changed("downstream") {
		filter.ByDownstream = wrapperspb.Bool(f.downstream)
	}
	return filter, nil
}

func (f *entryFilter) list(ctx context.Context, client entryv1.EntryClient, all *entryv1.ListEntriesResponse) error {
	filter, err := f.build()
	if err != nil {
		return err
	}
	for token := ""; ; {
		page, err := client.ListEntries(ctx, &entryv1.ListEntriesRequest{PageSize: entryPage, PageToken: token, Filter: filter})
		if err != nil {
			return fmt.Errorf("error fetching entries: %w", err)
		}
		all.Entries = append(all.Entries, page.GetEntries()...)
		if token = page.GetNextPageToken(); token == "" {
			return nil
		}
	}
}

// sortEntries orders entries as SPIRE's `entry show` does.
func sortEntries(entries []*types.Entry) {
	for _, e := range entries {
		slices.SortFunc(e.GetSelectors(), compareSelectors)
	}
	slices.SortStableFunc(entries, func(a, b *types.Entry) int {
		return cmp.Or(
			cmp.Compare(idText(a.GetSpiffeId()), idText(b.GetSpiffeId())),
			cmp.Compare(idText(a.GetParentId()), idText(b.GetParentId())),
			slices.CompareFunc(a.GetSelectors(), b.GetSelectors(), compareSelectors),
		)
	})
}

func compareSelectors(a, b *types.Selector) int {
	return cmp.Or(cmp.Compare(a.GetType(), b.GetType()), cmp.Compare(a.GetValue(), b.GetValue()))
}

// printEntry writes an entry with SPIRE's labels, which scripts read.
func printEntry(p *printer, e *types.Entry) {
	line := func(label string, value any) { p.printf("%-24s: %v\n", label, value) }
	ttl := func(label string, seconds int32) {
		if seconds == 0 {
			line(label, "default")
		} else {
			line(label, seconds)
		}
	}
	line("Entry ID", cmp.Or(e.GetId(), "(none)"))
	line("SPIFFE ID", idText(e.GetSpiffeId()))
	line("Parent ID", idText(e.GetParentId()))
	line("Revision", e.GetRevisionNumber())
	if e.GetDownstream() {
		line("Downstream", true)
	}
	ttl("X509-SVID TTL", e.GetX509SvidTtl())
	ttl("JWT-SVID TTL", e.GetJwtSvidTtl())
	if e.GetExpiresAt() != 0 {
		line("Expiration time", time.Unix(e.GetExpiresAt(), 0).UTC())
	}
	for _, s := range e.GetSelectors() {
		line("Selector", s.GetType()+":"+s.GetValue())
	}
	for _, td := range e.GetFederatesWith() {
		line("FederatesWith", td)
	}
	for _, name := range e.GetDnsNames() {
		line("DNS name", name)
	}
	if e.GetAdmin() {
		line("Admin", true)
	}
	if e.GetStoreSvid() {
		line("StoreSvid", true)
	}
	if e.GetHint() != "" {
		line("Hint", e.GetHint())
	}
	if e.GetAdditionalAttributes().GetDisableX509SvidPrefetch() {
		line("DisableX509SvidPrefetch", true)
	}
	if e.GetAdditionalAttributes().GetJwtSvidIncludeJti() {
		line("JwtSvidIncludeJti", true)
	}
	p.printf("\n")
}
