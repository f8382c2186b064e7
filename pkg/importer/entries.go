package importer

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// How many entries a call reads and writes.
const (
	entryPage  = 500
	entryBatch = 200
)

// joinTokenPrefix begins the paths of agents that attested with a join token:
// the token is the rest, and is used once.
const joinTokenPrefix = "/spire/agent/join_token/" //nolint:gosec // a path

// maxOrphans bounds how many parents are remembered for the warning.
const maxOrphans = 1000

func (r *run) entries(ctx context.Context) error {
	parents := map[string]bool{} // agents that attested with join tokens
	k := kind[*types.Entry]{
		name: "entry", plural: "entries", batch: entryBatch,
		id:        (*types.Entry).GetId,
		canonical: canonicalEntry,
		expired: func(e *types.Entry) bool {
			return e.GetExpiresAt() != 0 && e.GetExpiresAt() <= r.Now().Unix()
		},
		list: func(ctx context.Context, conn grpc.ClientConnInterface, token string) ([]*types.Entry, string, error) {
			page, err := entryv1.NewEntryClient(conn).ListEntries(ctx, &entryv1.ListEntriesRequest{PageSize: entryPage, PageToken: token})
			if conn == r.From {
				noteParents(parents, page.GetEntries())
			}
			return page.GetEntries(), page.GetNextPageToken(), err
		},
		get: func(ctx context.Context, conn grpc.ClientConnInterface, id string) (*types.Entry, error) {
			return entryv1.NewEntryClient(conn).GetEntry(ctx, &entryv1.GetEntryRequest{Id: id})
		},
		create: createEntries,
		update: updateEntries,
	}
	var err error
	if r.report.Entries, err = copyAll(ctx, r, k); err != nil {
		return err
	}
	return r.warnOrphans(ctx, parents)
}

// keepCreatedAt asks our server to keep created_at; SPIRE's does not know it.
const keepCreatedAt = "credence-keep-created-at"

func createEntries(ctx context.Context, conn grpc.ClientConnInterface, items []*types.Entry) ([]result, error) {
	ctx = metadata.AppendToOutgoingContext(ctx, keepCreatedAt, "true")
	resp, err := entryv1.NewEntryClient(conn).BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: items})
	out := make([]result, 0, len(items))
	for i, res := range resp.GetResults() {
		one := result{status: res.GetStatus()}
		if have := res.GetEntry().GetId(); have != "" && i < len(items) && have != items[i].GetId() {
			one.note = fmt.Sprintf(": here it is entry %s; delete that one and run this again", have)
		}
		out = append(out, one)
	}
	return out, err
}

func updateEntries(ctx context.Context, conn grpc.ClientConnInterface, items []*types.Entry) ([]result, error) {
	resp, err := entryv1.NewEntryClient(conn).BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{Entries: items})
	return statuses(resp.GetResults()), err
}

// statuses are the results of a batch.
func statuses[R interface{ GetStatus() *types.Status }](in []R) []result {
	out := make([]result, 0, len(in))
	for _, r := range in {
		out = append(out, result{status: r.GetStatus()})
	}
	return out
}

func noteParents(parents map[string]bool, entries []*types.Entry) {
	for _, e := range entries {
		path := e.GetParentId().GetPath()
		if strings.HasPrefix(path, joinTokenPrefix) && !isTokenAlias(e) && len(parents) < maxOrphans {
			parents[path] = true
		}
	}
}

// isTokenAlias says whether an entry is what a join token with a SPIFFE ID left:
// it goes with its agent, and nobody will miss it.
func isTokenAlias(e *types.Entry) bool {
	s := e.GetSelectors()
	return len(s) == 1 && s[0].GetType() == "spiffe_id"
}

// warnOrphans names the agents that entries are parented on and that cannot
// come here under that name.
func (r *run) warnOrphans(ctx context.Context, parents map[string]bool) error {
	agents := agentv1.NewAgentClient(r.To)
	for _, path := range slices.Sorted(maps.Keys(parents)) {
		_, err := agents.GetAgent(ctx, &agentv1.GetAgentRequest{Id: &types.SPIFFEID{TrustDomain: r.report.TrustDomain, Path: path}})
		switch status.Code(err) {
		case codes.OK:
		case codes.NotFound:
			r.Warn(fmt.Sprintf("entries with the parent spiffe://%s%s will find no agent here: a join token is used once, and its agent gets another SPIFFE ID here; "+
				"give that agent an alias (`token generate -spiffeID`) and parent the entries on it", r.report.TrustDomain, path))
		default:
			return fmt.Errorf("looking for the agent %s: %w", path, err)
		}
	}
	return nil
}
