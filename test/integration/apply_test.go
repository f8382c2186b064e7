package integration

import (
	"fmt"
	"strings"
	"testing"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// A folder declares 1,500 entries, and `entry apply` is killed three times while
// it makes them, changes them and deletes the older ones; once the server is
// killed under it. Run again, it ends where it would have ended, touches nothing
// of others, and then finds nothing to do.
func TestApplyConvergesAfterKill9(t *testing.T) {
	t.Parallel()
	const total = 1500
	w := newWorld(t, "apply")
	s := w.startServer(serverOptions{})
	foreign := s.create(w.entry("/foreign", w.id("/host"), "unix:uid:0"))

	dir := w.path("entries")
	declare := func(from int, hint string) {
		var text strings.Builder
		text.WriteString("entries:\n")
		for i := from; i < from+total; i++ {
			fmt.Fprintf(&text, "- {spiffe_id: %q, parent_id: %q, selectors: [\"unix:uid:%d\"], hint: %s}\n", w.id(fmt.Sprintf("/w/%d", i)), w.id("/host"), i, hint)
		}
		writeFile(t, dir+"/all.yaml", text.String())
	}
	args := []string{"entry", "apply", "-f", dir, "-set", "shop", "-prune", "-socketPath", s.socket()}
	changed := func(hint string) int {
		n := 0
		for _, e := range s.allEntries() {
			if e.GetHint() == hint {
				n++
			}
		}
		return n
	}
	interrupt := func(at int, hint string, kill func(*process)) {
		p := w.launch("apply", w.command(w.bin.server, args...))
		for changed(hint) < at && p.running() {
		}
		kill(p)
		<-p.done
	}
	killApply := func(p *process) {
		p.kill(t)
		t.Logf("killed after %d new and %d changed entries", changed("one"), changed("two"))
	}
	check := func(hint string, from int) {
		t.Helper()
		if out := s.cli(args[:len(args)-2]...); out.code != 0 {
			t.Fatalf("applying again: %d\n%s\n%s", out.code, tail(out.stdout), out.stderr)
		}
		all := s.allEntries()
		if len(all) != total+1 || all[foreign.GetId()].GetRevisionNumber() != foreign.GetRevisionNumber() {
			t.Errorf("%d entries, want %d and the foreign one untouched: %v", len(all), total+1, all[foreign.GetId()])
		}
		if n := changed(hint); n != total {
			t.Errorf("%d entries have hint %s, want %d", n, hint, total)
		}
		resp, err := s.entries().ListEntries(bounded(t), &entryv1.ListEntriesRequest{Filter: &entryv1.ListEntriesRequest_Filter{
			BySpiffeId: apiID(w.id(fmt.Sprintf("/w/%d", from-1))),
		}, OutputMask: &types.EntryMask{}})
		if err != nil || len(resp.GetEntries()) != 0 {
			t.Errorf("an entry that is not declared any more is there: %v, %v", resp, err)
		}
		out := s.cli(args[:len(args)-2]...)
		if want := fmt.Sprintf("Created 0, updated 0, deleted 0, failed 0, unchanged %d\n", total); out.stdout != want || out.code != 0 {
			t.Errorf("applying once more: %d %q %q, want %q", out.code, out.stdout, out.stderr, want)
		}
	}

	declare(0, "one")
	interrupt(100, "one", killApply)
	interrupt(700, "one", killApply)
	check("one", 0)

	declare(500, "two") // A third is new, two thirds change, a third goes.
	interrupt(400, "two", killApply)
	interrupt(900, "two", func(*process) { s.kill() })
	s.start()
	check("two", 500)
}
