package registry

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/credence-id/credence/pkg/store"
)

// Table says how much of one kind a store remembers.
type Table struct {
	// Name is what operators call it, such as "entries".
	Name string
	// Count of records, and the Bytes of their keys and values.
	Count, Bytes uint64
}

// Names of tables that are asked for by name.
const (
	EntriesTable  = "entries"
	AgentsTable   = "agents"
	BundlesTable  = "bundles"
	TokensTable   = "join_tokens"
	JournalsTable = "server_journals"
)

// tables are all there are, in the order in which they are told. What follows
// from others, such as the index of expiries, is one.
var tables = []struct{ name, prefix string }{
	{EntriesTable, tableEntry},
	{AgentsTable, tableAgent},
	{BundlesTable, tableBundle},
	{"federation_relationships", tableRelated},
	{TokensTable, tableToken},
	{JournalsTable, tableJournal},
	{"uniqueness", tableUnique},
	{"expiries", tableExpiry},
	{"meta", tableMeta},
}

// CountTables reads a store, at one revision, and counts what is in the tables
// with these names; all, when none is named, and then what is in no table too,
// as "other", if there is any. An error is the store's.
func CountTables(ctx context.Context, s store.Store, names ...string) ([]Table, error) {
	var out []Table
	err := s.View(ctx, func(tx store.Tx) error {
		out = out[:0]
		if len(names) == 0 {
			return countAll(tx, &out)
		}
		for _, t := range tables {
			if !slices.Contains(names, t.name) {
				continue
			}
			counted := Table{Name: t.name}
			if err := counted.count(tx, t.prefix); err != nil {
				return err
			}
			out = append(out, counted)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("counting what the store holds: %w", err)
	}
	return out, nil
}

func (t *Table) count(tx store.Tx, prefix string) error {
	for kv, err := range tx.Scan(prefix, "") {
		if err != nil {
			return err
		}
		t.add(kv)
	}
	return nil
}

func (t *Table) add(kv store.KV) {
	t.Count++
	t.Bytes += uint64(len(kv.Key) + len(kv.Value))
}

func countAll(tx store.Tx, out *[]Table) error {
	all := make([]Table, len(tables))
	for i, t := range tables {
		all[i].Name = t.name
	}
	other := Table{Name: "other"}
	for kv, err := range tx.Scan("", "") {
		if err != nil {
			return err
		}
		i := slices.IndexFunc(tables, func(t struct{ name, prefix string }) bool { return strings.HasPrefix(kv.Key, t.prefix) })
		if i < 0 {
			other.add(kv)
		} else {
			all[i].add(kv)
		}
	}
	if other.Count > 0 {
		all = append(all, other)
	}
	*out = all
	return nil
}
