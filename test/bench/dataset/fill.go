package dataset

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// batch is how many entries one call creates.
const batch = 50

// Fill creates the entries with one caller on each connection, which is to be
// an admin's. It returns how long that took.
func Fill(ctx context.Context, conns []grpc.ClientConnInterface, entries iter.Seq[*types.Entry]) (time.Duration, error) {
	start := time.Now()
	next, stop := iter.Pull(entries)
	defer stop()
	var mu sync.Mutex
	take := func() (out []*types.Entry) {
		mu.Lock()
		defer mu.Unlock()
		for len(out) < batch {
			e, ok := next()
			if !ok {
				break
			}
			out = append(out, e)
		}
		return out
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, conn := range conns {
		group.Go(func() error {
			for entries := take(); len(entries) > 0; entries = take() {
				if _, err := Create(ctx, conn, entries...); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := group.Wait()
	return time.Since(start), err
}

// Create creates entries in one call and returns their IDs. It is an error if
// one of them cannot be.
func Create(ctx context.Context, conn grpc.ClientConnInterface, entries ...*types.Entry) ([]string, error) {
	resp, err := entryv1.NewEntryClient(conn).BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: entries, OutputMask: &types.EntryMask{}})
	if err != nil {
		return nil, fmt.Errorf("creating entries: %w", err)
	}
	ids := make([]string, 0, len(entries))
	for _, r := range resp.GetResults() {
		if codes.Code(r.GetStatus().GetCode()) != codes.OK {
			return nil, fmt.Errorf("creating entries: %s", r.GetStatus().GetMessage())
		}
		ids = append(ids, r.GetEntry().GetId())
	}
	return ids, nil
}

// SetBundles gives the server a bundle for each of the trust domains, which
// are not real ones: each gets the authorities of our own.
func SetBundles(ctx context.Context, conn grpc.ClientConnInterface, trustDomains []string) error {
	if len(trustDomains) == 0 {
		return nil
	}
	client := bundlev1.NewBundleClient(conn)
	own, err := client.GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return fmt.Errorf("reading the server's bundle: %w", err)
	}
	req := &bundlev1.BatchSetFederatedBundleRequest{}
	for _, td := range trustDomains {
		req.Bundle = append(req.Bundle, &types.Bundle{TrustDomain: td, X509Authorities: own.GetX509Authorities()})
	}
	resp, err := client.BatchSetFederatedBundle(ctx, req)
	if err != nil {
		return fmt.Errorf("setting bundles of other trust domains: %w", err)
	}
	for _, r := range resp.GetResults() {
		if codes.Code(r.GetStatus().GetCode()) != codes.OK {
			return errors.New("setting a bundle: " + r.GetStatus().GetMessage())
		}
	}
	return nil
}
