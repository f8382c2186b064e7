package registry_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/registry"
	"github.com/credence-id/credence/pkg/store/bolt"
)

// What is written to the store is read from an Index that follows it.
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	dir, err := os.MkdirTemp("", "registry")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	s, err := bolt.Open(bolt.Config{Path: filepath.Join(dir, "store.db")})
	if err != nil {
		panic(err)
	}
	defer func() { _ = s.Close() }()
	td := spiffeid.RequireTrustDomainFromString("example.org")
	r, err := registry.New(ctx, registry.Config{Store: s, TrustDomain: td})
	if err != nil {
		panic(err)
	}
	index := registry.NewIndex()
	done := make(chan error, 1)
	go func() {
		done <- r.Follow(ctx, func(c *registry.Commit) error { index.Apply(c); return nil })
	}()

	created := r.CreateEntries(ctx, []*registry.Entry{{
		SPIFFEID:  spiffeid.RequireFromPath(td, "/web"),
		ParentID:  registry.ServerID(td),
		Selectors: attest.NewSelectors(attest.Selector{Type: "unix", Value: "uid:1000"}),
	}})[0]
	if created.Err != nil {
		panic(created.Err)
	}
	if err := index.WaitFor(ctx, created.Entry.ModRevision); err != nil {
		panic(err)
	}
	list, _ := index.ListEntries(registry.EntryFilter{ParentID: registry.ServerID(td)}, "", 0, time.Now())
	fmt.Println(len(list), list[0].SPIFFEID, list[0].IsAlias())
	cancel()
	fmt.Println(errors.Is(<-done, context.Canceled))
	// Output:
	// 1 spiffe://example.org/web true
	// true
}
