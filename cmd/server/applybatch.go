package main

import (
	"context"
	"fmt"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/credence-id/credence/pkg/manifest"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// One call carries so many entries and bytes at most: far below the 4 MB that
// gRPC servers accept, and small enough for a server to answer soon.
const (
	maxApplyBatch = 100
	maxApplyBytes = 1 << 20
)

// carryOut makes the changes in their order, in batches of one action each, and
// notes what became of each. The error is that of a call: nothing is known of
// its batch then, and the batches after it were not tried.
func (a *application) carryOut(ctx context.Context, client entryv1.EntryClient, progress *cli.Progress) error {
	for rest := a.Changes; len(rest) > 0; {
		n := batchSize(rest)
		batch := rest[:n]
		rest = rest[n:]
		if batch[0].Action == manifest.Refuse {
			continue
		}
		statuses, err := send(ctx, client, batch)
		if err != nil {
			return fmt.Errorf("%s of %d entries: %w", batch[0].Action, n, err)
		}
		if len(statuses) != n {
			return fmt.Errorf("%s of %d entries: the server answered about %d", batch[0].Action, n, len(statuses))
		}
		for i, s := range statuses {
			if code(s) == codes.OK {
				batch[i].Done = true
			} else {
				batch[i].Error = fmt.Sprintf("%s (%s)", s.GetMessage(), code(s))
			}
		}
		progress.Add(n)
	}
	return nil
}

// batchSize is how many of the first changes go into one call: at least one.
func batchSize(changes []appliedChange) int {
	bytes := 0
	for i, c := range changes {
		bytes += proto.Size(c.step.Entry)
		if i > 0 && (i == maxApplyBatch || bytes > maxApplyBytes || c.Action != changes[0].Action) {
			return i
		}
	}
	return len(changes)
}

func send(ctx context.Context, client entryv1.EntryClient, batch []appliedChange) ([]*types.Status, error) {
	entries := make([]*types.Entry, 0, len(batch))
	ids := make([]string, 0, len(batch))
	for _, c := range batch {
		entries, ids = append(entries, c.step.Entry), append(ids, c.EntryID)
	}
	switch batch[0].Action {
	case manifest.Create:
		resp, err := client.BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: entries, OutputMask: &types.EntryMask{}})
		return statusesOf(resp.GetResults()), err
	case manifest.Update:
		resp, err := client.BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{Entries: entries, OutputMask: &types.EntryMask{}})
		return statusesOf(resp.GetResults()), err
	default:
		resp, err := client.BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: ids})
		return statusesOf(resp.GetResults()), err
	}
}

func statusesOf[R interface{ GetStatus() *types.Status }](results []R) []*types.Status {
	out := make([]*types.Status, 0, len(results))
	for _, r := range results {
		out = append(out, r.GetStatus())
	}
	return out
}
