package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// changes are how long changes took to agents.
type changes struct {
	all, last []time.Duration
	unreached int
}

// changeTimeout is when a change that has not come to all agents is given up.
const changeTimeout = 10 * time.Second

// change makes, changes and deletes an entry of the first alias, in turn, and
// waits each time until all agents of the alias have it.
func (t *theatre) change(ctx context.Context, out *changes) error {
	client := entryv1.NewEntryClient(t.members[0].admins[0])
	tick := time.NewTicker(t.spec.changes)
	defer tick.Stop()
	want := (t.spec.agents + max(t.spec.aliases, 1) - 1) / max(t.spec.aliases, 1)
	for i := 0; ; i++ {
		e := entryOf(alias, fmt.Sprintf("/bench/change-%d", i/3), "unix:uid:0")
		e.Id = fmt.Sprintf("change-%d", i/3)
		p := t.fleet.Expect(e.GetId(), want)
		if err := apply(ctx, client, e, i%3); err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // the measurement is over
			}
			return err
		}
		waiting, cancel := context.WithTimeout(ctx, changeTimeout)
		err := p.Wait(waiting)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		took := p.Took()
		out.all = append(out.all, took...)
		if err != nil {
			out.unreached++
		} else {
			out.last = append(out.last, slices.Max(took))
		}
		t.fleet.Forget(e.GetId())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// apply does step 0, 1 or 2 of an entry's life.
func apply(ctx context.Context, client entryv1.EntryClient, e *types.Entry, step int) error {
	switch step {
	case 0:
		resp, err := client.BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
		if err != nil {
			return err
		}
		return itemError(resp.GetResults()[0].GetStatus())
	case 1:
		e.Hint = "changed"
		resp, err := client.BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{e}})
		if err != nil {
			return err
		}
		return itemError(resp.GetResults()[0].GetStatus())
	}
	resp, err := client.BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: []string{e.GetId()}})
	if err != nil {
		return err
	}
	return itemError(resp.GetResults()[0].GetStatus())
}

func itemError(s *types.Status) error {
	if s.GetCode() != 0 {
		return errors.New(s.GetMessage())
	}
	return nil
}
