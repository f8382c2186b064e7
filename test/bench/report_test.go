package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSummaryAndRatio(t *testing.T) {
	t.Parallel()
	ours := summary("p0", "what", "", []result{{"a_ms": 3.0, "note": "x"}, {"a_ms": 1.0}, {"a_ms": 2.0, "note": "y"}})
	if diff := cmp.Diff(map[string]figure{"a_ms": {1, 2, 3}}, ours.Figures); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]any{"note": "y"}, ours.Other); diff != "" {
		t.Error(diff)
	}
	theirs := summary("p0", "what", "spire", []result{{"a_ms": 5.0, "b_ms": 1.0}})
	if diff := cmp.Diff(map[string]figure{"a_ms": {2.5, 2.5, 2.5}}, ratio(ours, theirs).Figures); diff != "" {
		t.Error(diff)
	}
}

// TestDocumentCanBeReadBack holds the file against what is documented of it.
func TestDocumentCanBeReadBack(t *testing.T) {
	t.Parallel()
	d := newDocument(t.Context())
	d.Results = append(d.Results, summary("p0", "what", "", []result{{"a_ms": 1.5}}))
	file := filepath.Join(t.TempDir(), "out.json")
	if err := d.write(file); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	got := &document{}
	if err := json.Unmarshal(raw, got); err != nil {
		t.Fatal(err)
	}
	d.Results[0].Other = nil // empty, so left out
	if diff := cmp.Diff(d, got); diff != "" {
		t.Error(diff)
	}
	for _, empty := range []string{got.Commit, got.Machine, got.LoadBefore} {
		if empty == "" {
			t.Errorf("something is empty in %s", raw)
		}
	}
	var table strings.Builder
	if err := got.Results[0].table(&table); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(table.String(), "a_ms     1.5  1.5  1.5") {
		t.Errorf("the table is %q", table.String())
	}
}
