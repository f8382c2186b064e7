package entryapi

import (
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// filterMessage is what the filters of ListEntries and CountEntries have in
// common, which is everything.
type filterMessage interface {
	GetBySpiffeId() *types.SPIFFEID
	GetByParentId() *types.SPIFFEID
	GetBySelectors() *types.SelectorMatch
	GetByFederatesWith() *types.FederatesWithMatch
	GetByHint() *wrapperspb.StringValue
	GetByDownstream() *wrapperspb.BoolValue
}

// parseFilter reads a filter. The getters of a nil filter ask for nothing.
func (s *Service) parseFilter(m filterMessage) (f registry.EntryFilter, err error) {
	if id := m.GetBySpiffeId(); id != nil {
		if f.SPIFFEID, err = s.memberID(id); err != nil {
			return f, malformed("SPIFFE ID", err)
		}
	}
	if id := m.GetByParentId(); id != nil {
		if f.ParentID, err = s.memberID(id); err != nil {
			return f, malformed("parent ID", err)
		}
	}
	if by := m.GetBySelectors(); by != nil {
		if f.Selectors, err = registry.SelectorsFromWire(by.GetSelectors()); err != nil {
			return f, malformed("selectors", err)
		}
		if len(f.Selectors) == 0 {
			return f, rpcerr.New(codes.InvalidArgument, "malformed selectors filter: empty selector set")
		}
		if f.SelectorMatch, err = parseMatch("selectors", int32(by.GetMatch())); err != nil {
			return f, err
		}
	}
	if by := m.GetByFederatesWith(); by != nil {
		if f.FederatesWith, err = registry.TrustDomainsFromWire(by.GetTrustDomains()); err != nil {
			return f, malformed("federates with", err)
		}
		if len(f.FederatesWith) == 0 {
			return f, rpcerr.New(codes.InvalidArgument, "malformed federates with filter: empty trust domain set")
		}
		if f.FederatesWithMatch, err = parseMatch("federates with", int32(by.GetMatch())); err != nil {
			return f, err
		}
	}
	// An empty hint asks for nothing, as in SPIRE.
	if hint := m.GetByHint().GetValue(); hint != "" {
		f.Hint = &hint
	}
	// False asks for nothing either: SPIRE's command line sends it with each
	// list, and its server then leaves nothing out.
	if d := m.GetByDownstream(); d.GetValue() {
		f.Downstream = &d.Value
	}
	return f, nil
}

// memberID reads an ID that has a path and is of this server's trust domain: no
// entry has another, so that asking for one is a mistake.
func (s *Service) memberID(m *types.SPIFFEID) (spiffeid.ID, error) {
	id, err := registry.IDFromWire("id", m)
	switch {
	case err != nil:
		return spiffeid.ID{}, err
	case !id.MemberOf(s.cfg.TrustDomain):
		return spiffeid.ID{}, rpcerr.New(codes.InvalidArgument, "%q is not a member of trust domain %q", id, s.cfg.TrustDomain.Name())
	case id.Path() == "":
		return spiffeid.ID{}, rpcerr.New(codes.InvalidArgument, "%q has no path", id)
	}
	return id, nil
}

// parseMatch takes SPIRE's numbers, which are the same for both kinds of sets.
func parseMatch(filter string, m int32) (registry.Match, error) {
	match := registry.Match(m)
	if match < registry.MatchExact || match > registry.MatchAny {
		return 0, rpcerr.New(codes.InvalidArgument, "malformed %s filter: unknown match behavior %d", filter, m)
	}
	return match, nil
}

func malformed(filter string, err error) error {
	return rpcerr.Prefix(err, "malformed "+filter+" filter")
}
