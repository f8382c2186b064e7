package agentapi_test

import (
	"crypto/x509"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/credence-id/credence/pkg/server/apitest"
)

// put registers an agent as given.
func put(t *testing.T, w *apitest.World, a registry.Agent) {
	t.Helper()
	if a.NotAfter.IsZero() {
		a.NotAfter = time.Now().Add(time.Hour)
	}
	if _, err := w.Registry.AttestAgent(t.Context(), &a, "", nil); err != nil {
		t.Fatal(err)
	}
}

func selectors(values ...string) attest.Selectors {
	var out []attest.Selector
	for _, v := range values {
		out = append(out, attest.Selector{Type: "test", Value: v})
	}
	return attest.NewSelectors(out...)
}

func TestListAndCount(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{})
	id := func(path string) spiffeid.ID { return spiffeid.RequireFromPath(w.TrustDomain, "/spire/agent/"+path) }
	soon := time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
	put(t, w, registry.Agent{ID: id("a/1"), AttestationType: "a", Serial: "1", Selectors: selectors("x", "y")})
	put(t, w, registry.Agent{ID: id("a/2"), AttestationType: "a", Serial: "2", Selectors: selectors("x"), CanReattest: true})
	put(t, w, registry.Agent{ID: id("b/3"), AttestationType: "b", Serial: "3", Selectors: selectors("z"), NotAfter: soon})
	put(t, w, registry.Agent{ID: id("b/4"), AttestationType: "b", Serial: "4"})
	if err := w.Registry.BanAgent(t.Context(), id("b/4")); err != nil {
		t.Fatal(err)
	}
	client := agentv1.NewAgentClient(w.Local(t))
	match := func(m types.SelectorMatch_MatchBehavior, values ...string) *agentv1.ListAgentsRequest_Filter {
		out := &types.SelectorMatch{Match: m}
		for _, v := range values {
			out.Selectors = append(out.Selectors, &types.Selector{Type: "test", Value: v})
		}
		return &agentv1.ListAgentsRequest_Filter{BySelectorMatch: out}
	}
	for name, c := range map[string]struct {
		filter *agentv1.ListAgentsRequest_Filter
		want   []string
	}{
		"all":             {nil, []string{"a/1", "a/2", "b/3", "b/4"}},
		"type":            {&agentv1.ListAgentsRequest_Filter{ByAttestationType: "a"}, []string{"a/1", "a/2"}},
		"banned":          {&agentv1.ListAgentsRequest_Filter{ByBanned: wrapperspb.Bool(true)}, []string{"b/4"}},
		"not banned":      {&agentv1.ListAgentsRequest_Filter{ByBanned: wrapperspb.Bool(false)}, []string{"a/1", "a/2", "b/3"}},
		"can reattest":    {&agentv1.ListAgentsRequest_Filter{ByCanReattest: wrapperspb.Bool(true)}, []string{"a/2"}},
		"cannot reattest": {&agentv1.ListAgentsRequest_Filter{ByCanReattest: wrapperspb.Bool(false)}, []string{"a/1", "b/3", "b/4"}},
		"expires before":  {&agentv1.ListAgentsRequest_Filter{ByExpiresBefore: "2099-12-31 00:00:00 +0000 +00"}, []string{"a/1", "a/2", "b/4"}},
		"exact":           {match(types.SelectorMatch_MATCH_EXACT, "x"), []string{"a/2"}},
		"subset":          {match(types.SelectorMatch_MATCH_SUBSET, "x", "z"), []string{"a/2", "b/3"}},
		"superset":        {match(types.SelectorMatch_MATCH_SUPERSET, "x"), []string{"a/1", "a/2"}},
		"any":             {match(types.SelectorMatch_MATCH_ANY, "y", "z"), []string{"a/1", "b/3"}},
		"nothing":         {match(types.SelectorMatch_MATCH_EXACT, "q"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, size := range []int32{0, 1, 2, math.MaxInt32} {
				var got []string
				req := &agentv1.ListAgentsRequest{Filter: c.filter, PageSize: size}
				for {
					page, err := client.ListAgents(t.Context(), req)
					if err != nil {
						t.Fatal(err)
					}
					if size > 0 && len(page.GetAgents()) > int(size) {
						t.Errorf("a page of %d holds %d", size, len(page.GetAgents()))
					}
					for _, a := range page.GetAgents() {
						got = append(got, strings.TrimPrefix(a.GetId().GetPath(), "/spire/agent/"))
					}
					if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
						break
					}
				}
				if !slices.Equal(got, c.want) {
					t.Errorf("pages of %d: %v, want %v", size, got, c.want)
				}
			}
			count := &agentv1.CountAgentsRequest{}
			if f := c.filter; f != nil {
				count.Filter = &agentv1.CountAgentsRequest_Filter{
					ByAttestationType: f.ByAttestationType, BySelectorMatch: f.BySelectorMatch,
					ByBanned: f.ByBanned, ByCanReattest: f.ByCanReattest, ByExpiresBefore: f.ByExpiresBefore,
				}
			}
			n, err := client.CountAgents(t.Context(), count)
			if err != nil || int(n.GetCount()) != len(c.want) {
				t.Errorf("CountAgents = %d, %v, want %d", n.GetCount(), err, len(c.want))
			}
		})
	}
}

func TestListRefusals(t *testing.T) {
	t.Parallel()
	client := agentv1.NewAgentClient(world(t, apitest.Options{}).Local(t))
	for name, req := range map[string]*agentv1.ListAgentsRequest{
		"page token":      {PageToken: "17"},
		"time":            {Filter: &agentv1.ListAgentsRequest_Filter{ByExpiresBefore: "tomorrow"}},
		"selector":        {Filter: &agentv1.ListAgentsRequest_Filter{BySelectorMatch: &types.SelectorMatch{Selectors: []*types.Selector{{Type: "a:b", Value: "c"}}}}},
		"no selectors":    {Filter: &agentv1.ListAgentsRequest_Filter{BySelectorMatch: &types.SelectorMatch{}}},
		"match behaviour": {Filter: &agentv1.ListAgentsRequest_Filter{BySelectorMatch: &types.SelectorMatch{Match: 9, Selectors: []*types.Selector{{Type: "a", Value: "c"}}}}},
	} {
		if _, err := client.ListAgents(t.Context(), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, want InvalidArgument", name, err)
		}
	}
}

// TestS12_PageIsBounded: a page is bounded in bytes as well, and its token goes
// on where it ended.
func TestS12_PageIsBounded(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{})
	var big []string
	for i := range 100 {
		big = append(big, fmt.Sprint(i)+strings.Repeat("x", 4000))
	}
	const n = 12 // of 400 kB each
	for i := range n {
		id := spiffeid.RequireFromPathf(w.TrustDomain, "/spire/agent/test/%02d", i)
		put(t, w, registry.Agent{ID: id, AttestationType: "test", Serial: "1", Selectors: selectors(big...)})
	}
	client := agentv1.NewAgentClient(w.Local(t))
	seen := 0
	req := &agentv1.ListAgentsRequest{PageSize: math.MaxInt32}
	for {
		page, err := client.ListAgents(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if size := proto.Size(page); size > 3<<20 {
			t.Errorf("a page of %d bytes", size)
		}
		seen += len(page.GetAgents())
		if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
			break
		}
	}
	if seen != n {
		t.Errorf("the pages have %d agents, want %d", seen, n)
	}
}

// TestS15_EveryAgentField: each field of SPIRE's Agent is filled with a value of
// its own, and let through by its field of the mask alone, in ListAgents too.
func TestS15_EveryAgentField(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{})
	id := spiffeid.RequireFromPath(w.TrustDomain, "/spire/agent/kind/one")
	put(t, w, registry.Agent{
		ID: id, AttestationType: "kind", Serial: "17", Selectors: selectors("x"), CanReattest: true, Version: "1.2", NotAfter: time.Unix(5e9, 0),
	})
	client := agentv1.NewAgentClient(w.Local(t))
	get := func(mask *types.AgentMask) protoreflect.Message {
		list, err := client.ListAgents(t.Context(), &agentv1.ListAgentsRequest{OutputMask: mask})
		if err != nil || len(list.GetAgents()) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		one, err := client.GetAgent(t.Context(), &agentv1.GetAgentRequest{Id: list.GetAgents()[0].GetId(), OutputMask: mask})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(list.GetAgents()[0], one, protocmp.Transform()); diff != "" {
			t.Errorf("mask %v: listed (-), got (+):\n%s", mask, diff)
		}
		return one.ProtoReflect()
	}
	agentFields, maskFields := (*types.Agent)(nil).ProtoReflect().Descriptor().Fields(), (*types.AgentMask)(nil).ProtoReflect().Descriptor().Fields()
	all := get(nil)
	for i := range agentFields.Len() {
		field := agentFields.Get(i)
		if field.Name() == "id" {
			continue
		}
		only := maskFields.ByName(field.Name())
		if only == nil {
			t.Errorf("the mask has no field for %s", field.Name())
			continue
		}
		if !all.Has(field) && field.Name() != "banned" {
			t.Errorf("%s is not filled", field.Name())
		}
		mask := new(types.AgentMask)
		mask.ProtoReflect().Set(only, protoreflect.ValueOfBool(true))
		want := new(types.Agent).ProtoReflect()
		want.Set(agentFields.ByName("id"), all.Get(agentFields.ByName("id")))
		if all.Has(field) {
			want.Set(field, all.Get(field))
		}
		if diff := cmp.Diff(want.Interface(), get(mask).Interface(), protocmp.Transform()); diff != "" {
			t.Errorf("mask of %s alone (-want +got):\n%s", field.Name(), diff)
		}
	}
}

// TestExpiresBefore is strict, as SPIRE's, takes the time as SPIRE's command line
// writes it, and looks at the last of an agent's SVIDs.
func TestExpiresBefore(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{})
	end := time.Date(2100, 1, 2, 3, 4, 5, 0, time.UTC)
	id := spiffeid.RequireFromPath(w.TrustDomain, "/spire/agent/kind/one")
	put(t, w, registry.Agent{ID: id, AttestationType: "kind", Serial: "17", NotAfter: end})
	client := agentv1.NewAgentClient(w.Local(t))
	count := func(at time.Time) int32 {
		text := at.Format("2006-01-02 15:04:05 -0700 -07")
		resp, err := client.CountAgents(t.Context(), &agentv1.CountAgentsRequest{Filter: &agentv1.CountAgentsRequest_Filter{ByExpiresBefore: text}})
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		return resp.GetCount()
	}
	elsewhere := time.FixedZone("", 5*3600+1800)
	for at, want := range map[time.Time]int32{
		end.Add(-time.Second): 0, end: 0, end.Add(time.Second): 1, end.In(elsewhere): 0, end.Add(time.Second).In(elsewhere): 1,
	} {
		if got := count(at); got != want {
			t.Errorf("before %s: %d agents, want %d", at, got, want)
		}
	}
	if _, err := w.Registry.UpdateAgent(t.Context(), id, func(a *registry.Agent) error {
		a.Issued("18", end.Add(time.Hour))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := count(end.Add(time.Minute)); got != 0 {
		t.Errorf("an agent with a newer SVID is among %d that have expired", got)
	}
}

// TestS15_MaskIsFieldByField: each field of the mask lets one field through.
func TestS15_MaskIsFieldByField(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{})
	id := spiffeid.RequireFromPath(w.TrustDomain, "/spire/agent/test/one")
	put(t, w, registry.Agent{
		ID: id, AttestationType: "test", Serial: "17", Selectors: selectors("x"), CanReattest: true, Version: "1.2",
		NotAfter: time.Unix(5e9, 0),
	})
	client := agentv1.NewAgentClient(w.Local(t))
	wire := &types.SPIFFEID{TrustDomain: "example.org", Path: id.Path()}
	all := &types.Agent{
		Id: wire, AttestationType: "test", X509SvidSerialNumber: "17", X509SvidExpiresAt: 5e9,
		Selectors: []*types.Selector{{Type: "test", Value: "x"}}, CanReattest: true, AgentVersion: "1.2",
	}
	for name, c := range map[string]struct {
		mask *types.AgentMask
		want *types.Agent
	}{
		"nil":     {nil, all},
		"empty":   {&types.AgentMask{}, &types.Agent{Id: wire}},
		"type":    {&types.AgentMask{AttestationType: true}, &types.Agent{Id: wire, AttestationType: "test"}},
		"serial":  {&types.AgentMask{X509SvidSerialNumber: true}, &types.Agent{Id: wire, X509SvidSerialNumber: "17"}},
		"expires": {&types.AgentMask{X509SvidExpiresAt: true}, &types.Agent{Id: wire, X509SvidExpiresAt: 5e9}},
		"sel":     {&types.AgentMask{Selectors: true}, &types.Agent{Id: wire, Selectors: all.Selectors}},
		"reatt":   {&types.AgentMask{CanReattest: true}, &types.Agent{Id: wire, CanReattest: true}},
		"version": {&types.AgentMask{AgentVersion: true}, &types.Agent{Id: wire, AgentVersion: "1.2"}},
		"banned":  {&types.AgentMask{Banned: true}, &types.Agent{Id: wire}},
	} {
		got, err := client.GetAgent(t.Context(), &agentv1.GetAgentRequest{Id: wire, OutputMask: c.mask})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if _, err := client.BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: wire}); err != nil {
		t.Fatal(err)
	}
	got, err := client.GetAgent(t.Context(), &agentv1.GetAgentRequest{Id: wire})
	if err != nil || !got.GetBanned() || got.GetX509SvidSerialNumber() != "" {
		t.Errorf("banned: %v, %v; want banned without a serial number", got, err)
	}
}

func TestAgentIDs(t *testing.T) {
	t.Parallel()
	client := agentv1.NewAgentClient(world(t, apitest.Options{}).Local(t))
	for name, c := range map[string]struct {
		id   *types.SPIFFEID
		code codes.Code
		text string
	}{
		"none":        {nil, codes.InvalidArgument, "invalid agent ID"},
		"foreign":     {&types.SPIFFEID{TrustDomain: "other.org", Path: "/spire/agent/a/b"}, codes.InvalidArgument, "invalid agent ID"},
		"no path":     {&types.SPIFFEID{TrustDomain: "example.org"}, codes.InvalidArgument, "invalid agent ID"},
		"a workload":  {&types.SPIFFEID{TrustDomain: "example.org", Path: "/a"}, codes.InvalidArgument, "invalid agent ID"},
		"not there":   {&types.SPIFFEID{TrustDomain: "example.org", Path: "/spire/agent/a/b"}, codes.NotFound, "agent not found"},
		"a long name": {&types.SPIFFEID{TrustDomain: "example.org", Path: "/spire/agent/a/" + strings.Repeat("b", 3000)}, codes.NotFound, "agent not found"},
	} {
		_, get := client.GetAgent(t.Context(), &agentv1.GetAgentRequest{Id: c.id})
		_, ban := client.BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: c.id})
		_, del := client.DeleteAgent(t.Context(), &agentv1.DeleteAgentRequest{Id: c.id})
		for verb, err := range map[string]error{"get": get, "ban": ban, "delete": del} {
			if status.Code(err) != c.code || !strings.HasPrefix(status.Convert(err).Message(), c.text) {
				t.Errorf("%s, %s: %v, want %s: %s", name, verb, err, c.code, c.text)
			}
		}
	}
}

func TestCreateJoinToken(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{})
	client := agentv1.NewAgentClient(w.Local(t))
	begin := time.Now()
	out, err := client.CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{
		Ttl: 600, Token: "mine", AgentId: &types.SPIFFEID{TrustDomain: "example.org", Path: "/node"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if out.GetValue() != "mine" || time.Unix(out.GetExpiresAt(), 0).Before(begin.Add(599*time.Second)) || time.Unix(out.GetExpiresAt(), 0).After(begin.Add(602*time.Second)) {
		t.Errorf("got %v", out)
	}
	parent := spiffeid.RequireFromPath(w.TrustDomain, "/spire/agent/join_token/mine")
	entries, _ := w.Index.ListEntries(registry.EntryFilter{ParentID: parent}, "", 0, time.Now())
	want := attest.NewSelectors(attest.Selector{Type: "spiffe_id", Value: parent.String()})
	if len(entries) != 1 || entries[0].SPIFFEID.Path() != "/node" || !entries[0].Selectors.Equal(want) {
		t.Errorf("alias: %+v", entries)
	}
	for name, c := range map[string]struct {
		req  *agentv1.CreateJoinTokenRequest
		code codes.Code
		text string
	}{
		"no ttl":         {&agentv1.CreateJoinTokenRequest{}, codes.InvalidArgument, "ttl is required, you must provide one"},
		"negative ttl":   {&agentv1.CreateJoinTokenRequest{Ttl: -1}, codes.InvalidArgument, "ttl is required, you must provide one"},
		"there already":  {&agentv1.CreateJoinTokenRequest{Ttl: 1, Token: "mine"}, codes.AlreadyExists, "failed to create token"},
		"not a segment":  {&agentv1.CreateJoinTokenRequest{Ttl: 1, Token: "a/b"}, codes.InvalidArgument, "creating join token: token: "},
		"foreign alias":  {&agentv1.CreateJoinTokenRequest{Ttl: 1, AgentId: &types.SPIFFEID{TrustDomain: "other.org", Path: "/a"}}, codes.InvalidArgument, "invalid agent ID: "},
		"reserved alias": {&agentv1.CreateJoinTokenRequest{Ttl: 1, AgentId: &types.SPIFFEID{TrustDomain: "example.org", Path: "/spire/server"}}, codes.InvalidArgument, "invalid agent ID: "},
	} {
		_, err := client.CreateJoinToken(t.Context(), c.req)
		if status.Code(err) != c.code || !strings.HasPrefix(status.Convert(err).Message(), c.text) {
			t.Errorf("%s: %v, want %s: %s…", name, err, c.code, c.text)
		}
	}
}

// TestS14_AliasGoesWithItsAgent over the API.
func TestS14_AliasGoesWithItsAgent(t *testing.T) {
	t.Parallel()
	w := world(t, apitest.Options{})
	client := agentv1.NewAgentClient(w.Local(t))
	for _, verb := range []string{"ban", "evict"} {
		tok := token(t, w, &types.SPIFFEID{TrustDomain: "example.org", Path: "/node/" + verb})
		key := apitest.NewKey(t)
		got, err := attestOver(t.Context(), w.Dial(t, nil), params("join_token", tok, apitest.CSR(t, key, x509.CertificateRequest{})))
		if err != nil {
			t.Fatal(err)
		}
		if verb == "ban" {
			_, err = client.BanAgent(t.Context(), &agentv1.BanAgentRequest{Id: got.GetSvid().GetId()})
		} else {
			_, err = client.DeleteAgent(t.Context(), &agentv1.DeleteAgentRequest{Id: got.GetSvid().GetId()})
		}
		if err != nil {
			t.Fatal(err)
		}
		alias := spiffeid.RequireFromPath(w.TrustDomain, "/node/"+verb)
		if n := w.Index.CountEntries(registry.EntryFilter{SPIFFEID: alias}, time.Now()); n != 0 {
			t.Errorf("after %s, %d entries are left of its alias", verb, n)
		}
	}
}
