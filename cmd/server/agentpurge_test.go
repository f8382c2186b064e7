package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPurgedIsPrintedAsSPIREDoes(t *testing.T) {
	t.Parallel()
	r := purged{Agents: []purgedAgent{
		{ID: "spiffe://td.test/a", Deleted: true},
		{ID: "spiffe://td.test/b", Error: "gone"},
		{ID: "spiffe://td.test/c", Deleted: true},
		{ID: "spiffe://td.test/d", Error: "banned"},
	}}
	const want = "Found 4 expired agents\n\n" +
		"Agents purged:\nSPIFFE ID         : spiffe://td.test/a\nSPIFFE ID         : spiffe://td.test/c\n" +
		"Agents not purged:\nSPIFFE ID         : spiffe://td.test/b\nError             : gone\nSPIFFE ID         : spiffe://td.test/d\nError             : banned\n"
	var got strings.Builder
	if err := r.print(&got, false); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("purged (-want +got):\n%s", diff)
	}
}
