package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/pflag"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// entryFlags are the flags of create and update that say what the entry is.
type entryFlags struct {
	flags *pflag.FlagSet

	entryID, parentID, spiffeID, hint, data string
	selectors, federatesWith, dns           []string
	x509TTL, jwtTTL                         int
	expiry                                  int64
	admin, downstream, storeSVID, node      bool
	disableX509SVIDPrefetch, includeJTI     bool
}

func newEntryFlags(flags *pflag.FlagSet) *entryFlags {
	f := &entryFlags{flags: flags}
	flags.StringVar(&f.entryID, "entryID", "", "the entry's ID; create makes one if it is not given")
	flags.StringVar(&f.parentID, "parentID", "", "SPIFFE ID of the agent, alias or entry it is delegated to")
	flags.StringVar(&f.spiffeID, "spiffeID", "", "the SPIFFE ID to issue")
	flags.StringVar(&f.data, "data", "", "a JSON file with entries, or - for standard input; the other flags about entries are not looked at then")
	flags.StringArrayVar(&f.selectors, "selector", nil, "type:value the workload must have; may be repeated")
	flags.StringArrayVar(&f.federatesWith, "federatesWith", nil, "trust domain whose bundle the workload gets; may be repeated")
	flags.StringArrayVar(&f.dns, "dns", nil, "DNS name in the X509-SVID; may be repeated")
	flags.IntVar(&f.x509TTL, "x509SVIDTTL", 0, "lifetime of X509-SVIDs, in seconds; 0: the server's default")
	flags.IntVar(&f.jwtTTL, "jwtSVIDTTL", 0, "lifetime of JWT-SVIDs, in seconds; 0: the server's default")
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

// needed checks the flags that create and update need alike, in SPIRE's order;
// parent is what is wrong if there is no parent.
func (f *entryFlags) needed(parent string) error {
	switch {
	case len(f.selectors) == 0:
		return cli.Hint(errors.New("at least one selector is required"), "such as -selector unix:uid:1000")
	case f.node && len(f.federatesWith) > 0:
		return errors.New("node entries can not federate")
	case f.parentID == "" && !f.node:
		return cli.Hint(errors.New(parent), "`agent list` shows the agents an entry can be parented on")
	case f.spiffeID == "":
		return errors.New("a SPIFFE ID is required")
	case f.x509TTL < 0:
		return errors.New("a positive x509-SVID TTL is required")
	case f.jwtTTL < 0:
		return errors.New("a positive JWT-SVID TTL is required")
	}
	return nil
}

// entry is what the flags say, after needed has looked at them.
func (f *entryFlags) entry() (*types.Entry, error) {
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
	x509TTL, err := toInt32(f.x509TTL)
	if err != nil {
		return nil, fmt.Errorf("invalid value for X509 SVID TTL: %w", err)
	}
	jwtTTL, err := toInt32(f.jwtTTL)
	if err != nil {
		return nil, fmt.Errorf("invalid value for JWT SVID TTL: %w", err)
	}
	selectors, err := parseSelectors(f.selectors, func(_ string, err error) error { return err })
	if err != nil {
		return nil, err
	}
	e := &types.Entry{
		Id: f.entryID, SpiffeId: id, ParentId: parent, Selectors: selectors,
		X509SvidTtl: x509TTL, JwtSvidTtl: jwtTTL, FederatesWith: f.federatesWith, DnsNames: f.dns,
		Admin: f.admin, Downstream: f.downstream, StoreSvid: f.storeSVID, Hint: f.hint, ExpiresAt: f.expiry,
	}
	if f.disableX509SVIDPrefetch || f.includeJTI {
		e.AdditionalAttributes = &types.Entry_AdditionalAttributes{
			DisableX509SvidPrefetch: f.disableX509SVIDPrefetch, JwtSvidIncludeJti: f.includeJTI,
		}
	}
	return e, nil
}

// attributesGiven says whether a flag is about what SPIRE's API calls additional
// attributes.
func (f *entryFlags) attributesGiven() bool {
	return f.flags.Changed("disableX509SVIDPrefetch") || f.flags.Changed("jwtSVIDIncludeJTI")
}

// keepAttributes gives e the attributes that the entry has now, but for those
// that flags are about: they have no mask of their own in SPIRE's API.
func (f *entryFlags) keepAttributes(e, now *types.Entry) {
	attributes := &types.Entry_AdditionalAttributes{
		DisableX509SvidPrefetch: now.GetAdditionalAttributes().GetDisableX509SvidPrefetch(),
		JwtSvidIncludeJti:       now.GetAdditionalAttributes().GetJwtSvidIncludeJti(),
	}
	if f.flags.Changed("disableX509SVIDPrefetch") {
		attributes.DisableX509SvidPrefetch = f.disableX509SVIDPrefetch
	}
	if f.flags.Changed("jwtSVIDIncludeJTI") {
		attributes.JwtSvidIncludeJti = f.includeJTI
	}
	e.AdditionalAttributes = attributes
}

// sortEntries orders entries as SPIRE's `entry show` does.
func sortEntries(entries []*types.Entry) {
	for _, e := range entries {
		slices.SortFunc(e.GetSelectors(), compareSelectors)
	}
	slices.SortStableFunc(entries, func(a, b *types.Entry) int {
		return cmp.Or(
			compareIDs(a.GetSpiffeId(), b.GetSpiffeId()),
			compareIDs(a.GetParentId(), b.GetParentId()),
			cmp.Compare(a.GetX509SvidTtl(), b.GetX509SvidTtl()),
			cmp.Compare(a.GetJwtSvidTtl(), b.GetJwtSvidTtl()),
			cmp.Compare(len(a.GetSelectors()), len(b.GetSelectors())),
			slices.CompareFunc(a.GetSelectors(), b.GetSelectors(), compareSelectors),
		)
	})
}

func compareIDs(a, b *types.SPIFFEID) int {
	return cmp.Or(cmp.Compare(a.GetTrustDomain(), b.GetTrustDomain()), cmp.Compare(a.GetPath(), b.GetPath()))
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
