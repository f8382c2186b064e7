package agentapi

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/credence-id/credence/pkg/server/rpcerr"
)

// maxPageBytes bounds what one page of agents weighs on the wire: clients take
// 4 MiB.
const maxPageBytes = 2 << 20

// expiresBefore is the layout of SPIRE's filter by_expires_before.
const expiresBefore = "2006-01-02 15:04:05 -0700 -07"

// CountAgents counts the agents that the filter selects.
func (s *Service) CountAgents(ctx context.Context, req *agentv1.CountAgentsRequest) (*agentv1.CountAgentsResponse, error) {
	filter, err := toFilter(req.GetFilter())
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Fresh(ctx); err != nil {
		return nil, err
	}
	n := min(s.cfg.Index.CountAgents(filter), math.MaxInt32)
	return &agentv1.CountAgentsResponse{Count: int32(n)}, nil
}

// ListAgents lists the agents that the filter selects, by SPIFFE ID. A page is
// bounded in agents and in bytes, whatever the client asks for; the token is
// the last SPIFFE ID of the page before.
func (s *Service) ListAgents(ctx context.Context, req *agentv1.ListAgentsRequest) (*agentv1.ListAgentsResponse, error) {
	filter, err := toFilter(req.GetFilter())
	if err != nil {
		return nil, err
	}
	if token := req.GetPageToken(); token != "" {
		if _, err := spiffeid.FromString(token); err != nil {
			return nil, rpcerr.New(codes.InvalidArgument, "page_token: it is not one that this server gave out")
		}
	}
	if err := s.cfg.Fresh(ctx); err != nil {
		return nil, err
	}
	agents, next := s.cfg.Index.ListAgents(filter, req.GetPageToken(), int(req.GetPageSize()))
	out := &agentv1.ListAgentsResponse{NextPageToken: next}
	weight := 0
	for i, a := range agents {
		m := toWire(a, req.GetOutputMask())
		weight += proto.Size(m)
		if i > 0 && weight > maxPageBytes {
			out.NextPageToken = agents[i-1].ID.String()
			break
		}
		out.Agents = append(out.Agents, m)
	}
	return out, nil
}

// GetAgent returns one agent.
func (s *Service) GetAgent(ctx context.Context, req *agentv1.GetAgentRequest) (*types.Agent, error) {
	id, err := s.agentID(req.GetId())
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Fresh(ctx); err != nil {
		return nil, err
	}
	a, ok := s.cfg.Index.Agent(id)
	if !ok {
		return nil, rpcerr.New(codes.NotFound, "agent not found")
	}
	return toWire(a, req.GetOutputMask()), nil
}

// DeleteAgent evicts an agent: what it has open ends, and it must attest again.
func (s *Service) DeleteAgent(ctx context.Context, req *agentv1.DeleteAgentRequest) (*emptypb.Empty, error) {
	return s.end(ctx, "agent.evict", req.GetId(), s.cfg.Registry.DeleteAgent)
}

// BanAgent bans an agent: what it has open ends, and it is not let in again
// until it is deleted.
func (s *Service) BanAgent(ctx context.Context, req *agentv1.BanAgentRequest) (*emptypb.Empty, error) {
	return s.end(ctx, "agent.ban", req.GetId(), s.cfg.Registry.BanAgent)
}

// end ends an agent's authority. When it answers, this server lets the agent do
// nothing more.
func (s *Service) end(ctx context.Context, action string, wire *types.SPIFFEID, do func(context.Context, spiffeid.ID) error) (*emptypb.Empty, error) {
	id, err := s.agentID(wire)
	if err != nil {
		return nil, err
	}
	done := s.cfg.Audit.Begin(ctx, event(ctx, action, id.String()))
	err = do(ctx, id)
	done(err)
	if err != nil {
		return nil, agentError(id, err)
	}
	if err := s.cfg.Fresh(ctx); err != nil {
		return nil, fmt.Errorf("the agent's end is recorded but not yet in effect on this server: %w", err)
	}
	return &emptypb.Empty{}, nil
}

// CreateJoinToken makes a token that lets one agent attest.
func (s *Service) CreateJoinToken(ctx context.Context, req *agentv1.CreateJoinTokenRequest) (*types.JoinToken, error) {
	if req.GetTtl() < 1 {
		return nil, rpcerr.New(codes.InvalidArgument, "ttl is required, you must provide one")
	}
	token := req.GetToken()
	if token == "" {
		random, err := uuid.NewRandom()
		if err != nil {
			return nil, fmt.Errorf("making a join token: %w", err)
		}
		token = random.String()
	}
	alias, err := s.tokenAlias(token, req.GetAgentId())
	if err != nil {
		return nil, err
	}
	subject := ""
	if alias != nil {
		subject = alias.SPIFFEID.String()
	}
	done := s.cfg.Audit.Begin(ctx, event(ctx, "join_token.create", subject))
	made, err := s.cfg.Registry.CreateJoinToken(ctx, token, time.Duration(req.GetTtl())*time.Second, alias)
	done(err)
	if err != nil {
		return nil, tokenError(err)
	}
	if alias != nil {
		if err := s.cfg.Fresh(ctx); err != nil {
			return nil, err
		}
	}
	return &types.JoinToken{Value: token, ExpiresAt: made.ExpiresAt.Unix()}, nil
}

// tokenAlias is the entry that gives the agent a second name, as SPIRE makes it;
// nil when none is asked for.
func (s *Service) tokenAlias(token string, wire *types.SPIFFEID) (*registry.Entry, error) {
	if wire == nil {
		return nil, nil
	}
	name, err := registry.IDFromWire("agent_id", wire)
	if err != nil {
		return nil, rpcerr.New(codes.InvalidArgument, "invalid agent ID: %v", err)
	}
	parent, err := spiffeid.FromSegments(s.cfg.TrustDomain, "spire", "agent", "join_token", token)
	if err != nil {
		return nil, rpcerr.New(codes.InvalidArgument, "token: %v", err)
	}
	alias := &registry.Entry{
		SPIFFEID:  name,
		ParentID:  parent,
		Selectors: attest.NewSelectors(attest.Selector{Type: "spiffe_id", Value: parent.String()}),
	}
	if err := alias.Validate(s.cfg.TrustDomain); err != nil {
		return nil, rpcerr.New(codes.InvalidArgument, "invalid agent ID: %v", err)
	}
	return alias, nil
}

func tokenError(err error) error {
	if errors.Is(err, registry.ErrExists) {
		return rpcerr.New(codes.AlreadyExists, "failed to create token: it already exists")
	}
	return fmt.Errorf("creating join token: %w", err)
}

// agentID reads the SPIFFE ID of an agent of this trust domain.
func (s *Service) agentID(wire *types.SPIFFEID) (spiffeid.ID, error) {
	id, err := registry.IDFromWire("id", wire)
	if err != nil {
		return spiffeid.ID{}, rpcerr.New(codes.InvalidArgument, "invalid agent ID: %v", err)
	}
	rule := ""
	switch path := id.Path(); {
	case !id.MemberOf(s.cfg.TrustDomain):
		rule = fmt.Sprintf("%q is not a member of trust domain %q", id, s.cfg.TrustDomain.Name())
	case path == "":
		rule = fmt.Sprintf("%q is not an agent in trust domain %q; path is empty", id, s.cfg.TrustDomain.Name())
	case !strings.HasPrefix(path, agentPath):
		rule = fmt.Sprintf("%q is not an agent in trust domain %q; path is not in the agent namespace", id, s.cfg.TrustDomain.Name())
	default:
		return id, nil
	}
	return spiffeid.ID{}, rpcerr.New(codes.InvalidArgument, "invalid agent ID: %s", rule)
}

// filter is what the filters of ListAgents and CountAgents have in common.
type filter interface {
	GetByAttestationType() string
	GetBySelectorMatch() *types.SelectorMatch
	GetByBanned() *wrapperspb.BoolValue
	GetByCanReattest() *wrapperspb.BoolValue
	GetByExpiresBefore() string
}

// parseExpiresBefore reads the time by its first zone: the second has no minutes,
// and is the one that time.Parse would go by.
func parseExpiresBefore(text string) (time.Time, error) {
	if _, err := time.Parse(expiresBefore, text); err != nil {
		return time.Time{}, err
	}
	return time.Parse(strings.TrimSuffix(expiresBefore, " -07"), text[:strings.LastIndexByte(text, ' ')])
}

func toFilter(f filter) (registry.AgentFilter, error) {
	out := registry.AgentFilter{AttestationType: f.GetByAttestationType()}
	if b := f.GetByBanned(); b != nil {
		out.Banned = &b.Value
	}
	if b := f.GetByCanReattest(); b != nil {
		out.CanReattest = &b.Value
	}
	if text := f.GetByExpiresBefore(); text != "" {
		at, err := parseExpiresBefore(text)
		if err != nil {
			return out, rpcerr.New(codes.InvalidArgument, "filter.by_expires_before: write it like %q", expiresBefore)
		}
		out.ExpiresBefore = at
	}
	m := f.GetBySelectorMatch()
	if m == nil {
		return out, nil
	}
	if _, known := types.SelectorMatch_MatchBehavior_name[int32(m.GetMatch())]; !known {
		return out, rpcerr.New(codes.InvalidArgument, "filter.by_selector_match: match behavior %d is not known", m.GetMatch())
	}
	selectors, err := registry.SelectorsFromWire(m.GetSelectors())
	if err != nil {
		return out, rpcerr.New(codes.InvalidArgument, "failed to parse selectors: %v", err)
	}
	if len(selectors) == 0 {
		return out, rpcerr.New(codes.InvalidArgument, "filter.by_selector_match: at least one selector is required")
	}
	out.Selectors, out.SelectorMatch = selectors, registry.Match(m.GetMatch())
	return out, nil
}

// toWire is the agent with the fields of the mask (nil: all) and its ID. Like
// SPIRE's, a banned agent has no serial number.
func toWire(a *registry.Agent, mask *types.AgentMask) *types.Agent {
	m := a.ToWire()
	if a.Banned {
		m.X509SvidSerialNumber = ""
	}
	if mask == nil {
		return m
	}
	out := &types.Agent{Id: m.Id}
	if mask.AttestationType {
		out.AttestationType = m.AttestationType
	}
	if mask.X509SvidSerialNumber {
		out.X509SvidSerialNumber = m.X509SvidSerialNumber
	}
	if mask.X509SvidExpiresAt {
		out.X509SvidExpiresAt = m.X509SvidExpiresAt
	}
	if mask.Selectors {
		out.Selectors = m.Selectors
	}
	if mask.Banned {
		out.Banned = m.Banned
	}
	if mask.CanReattest {
		out.CanReattest = m.CanReattest
	}
	if mask.AgentVersion {
		out.AgentVersion = m.AgentVersion
	}
	return out
}
