package unix

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/workload"
	"github.com/credence-id/credence/pkg/attest/workload/workloadtest"
	"github.com/google/go-cmp/cmp"
)

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/:\n"
	group  = "root:x:0:\nweb:x:1000:\nstaff:x:50:web,root\n"
)

// newAttestor reads names from files of its own.
func newAttestor(t *testing.T, cfg Config) *Attestor {
	t.Helper()
	a := New(cfg)
	a.users.path = write(t, "passwd", passwd)
	a.groups.path = write(t, "group", group)
	return a
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func process(uid, gid uint32, groups, exe, content string) *workloadtest.Process {
	status := fmt.Sprintf("Name:\tweb\nUid:\t%d\t%d\t%d\t%d\nGroups:\t%s \nVmPeak:\t1 kB\n", uid, uid, uid, uid, groups)
	return &workloadtest.Process{
		ID: 42, User: uid, Group: gid,
		Files:      fstest.MapFS{"status": {Data: []byte(status)}},
		Links:      map[string]string{"exe": exe},
		Executable: []byte(content),
	}
}

func sha(content string) string {
	sum := sha256.Sum256([]byte(content))
	return hex.EncodeToString(sum[:])
}

func set(values ...string) attest.Selectors {
	var out []attest.Selector
	for _, v := range values {
		out = append(out, attest.Selector{Type: "unix", Value: v})
	}
	return attest.NewSelectors(out...)
}

func TestConformance(t *testing.T) {
	t.Parallel()
	identity1 := []string{"uid:1000", "user:web", "gid:1000", "group:web", "supplementary_gid:50", "supplementary_group:staff", "supplementary_gid:77"}
	identity2 := []string{"uid:7", "gid:0", "group:root"}
	for name, tc := range map[string]struct {
		cfg            Config
		extra1, extra2 []string
	}{
		"default":     {},
		"path":        {cfg: Config{DiscoverWorkloadPath: true, WorkloadSizeLimit: -1}, extra1: []string{"path:/srv/canary-one"}, extra2: []string{"path:/srv/canary-two (deleted)"}},
		"path, sha":   {cfg: Config{DiscoverWorkloadPath: true}, extra1: []string{"path:/srv/canary-one", "sha256:" + sha("ONE")}, extra2: []string{"path:/srv/canary-two (deleted)", "sha256:" + sha("TWO")}},
		"with limit":  {cfg: Config{DiscoverWorkloadPath: true, WorkloadSizeLimit: 3}, extra1: []string{"path:/srv/canary-one", "sha256:" + sha("ONE")}, extra2: []string{"path:/srv/canary-two (deleted)", "sha256:" + sha("TWO")}},
		"limit alone": {cfg: Config{WorkloadSizeLimit: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			workloadtest.Run(t, workloadtest.Subject{
				New:     func(t *testing.T) workload.Attestor { return newAttestor(t, tc.cfg) },
				One:     process(1000, 1000, "50 77", "/srv/canary-one", "ONE"),
				WantOne: set(append(identity1, tc.extra1...)...),
				Two:     process(7, 0, "", "/srv/canary-two (deleted)", "TWO"),
				WantTwo: set(append(identity2, tc.extra2...)...),
				Secrets: []string{"canary"},
			})
		})
	}
}

func TestS08_WorkloadSizeLimit(t *testing.T) {
	t.Parallel()
	a := newAttestor(t, Config{DiscoverWorkloadPath: true, WorkloadSizeLimit: 100})
	for size, ok := range map[int]bool{0: true, 99: true, 100: true, 101: false} {
		got, _, err := a.Attest(t.Context(), process(1, 1, "", "/x", strings.Repeat("x", size)))
		if (err == nil) != ok || (!ok && (!errors.Is(err, errTooLarge) || len(got) != 0)) {
			t.Errorf("%d bytes: selectors %v, error %v; want ok=%v", size, got, err, ok)
		}
		// A file can lie about its size, or grow.
		_, err = digest(t.Context(), strings.NewReader(strings.Repeat("x", size)), 100)
		if (err == nil) != ok {
			t.Errorf("%d bytes read: %v, want ok=%v", size, err, ok)
		}
	}
}

// TestS05_ErrorsDoNotQuoteTheProcess: what cannot become a selector is not in
// the error either.
func TestS05_ErrorsDoNotQuoteTheProcess(t *testing.T) {
	t.Parallel()
	const canary = "canary-5f1c"
	for name, p := range map[string]*workloadtest.Process{
		"path not UTF-8": process(1, 1, "", "/"+canary+"\xff", ""),
		"path too long":  process(1, 1, "", "/"+canary+strings.Repeat("x", attest.MaxSelectorValue), ""),
		"bad group":      process(1, 1, canary, "/x", ""),
	} {
		got, _, err := newAttestor(t, Config{DiscoverWorkloadPath: true}).Attest(t.Context(), p)
		if err == nil || len(got) != 0 || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: selectors %v, error %v", name, got, err)
		}
	}
}

func TestManyGroups(t *testing.T) {
	t.Parallel()
	gids := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "%d ", 1_000_000+i)
		}
		return b.String()
	}
	a := newAttestor(t, Config{})
	for n, ok := range map[int]bool{attest.MaxSelectors - 2: true, attest.MaxSelectors - 1: false} { // two are uid and gid
		got, _, err := a.Attest(t.Context(), process(1, 1, gids(n), "/x", ""))
		if (err == nil) != ok {
			t.Errorf("%d groups: %d selectors, error %v; want ok=%v", n, len(got), err, ok)
		}
	}
}

func TestDigestIsRemembered(t *testing.T) {
	t.Parallel()
	path := write(t, "exe", "first")
	p := &fileProcess{Process: process(1, 1, "", path, ""), path: path}
	var d digests
	want := func(content string) {
		t.Helper()
		got, err := d.of(t.Context(), p)
		if err != nil || got != sha(content) {
			t.Fatalf("digest %s, error %v; want that of %q", got, err, content)
		}
		d.running.Wait()
	}
	// 1. A file that has just changed is not remembered: it may change again
	// within the same tick.
	want("first")
	if len(d.known) != 0 {
		t.Fatalf("the digest of a file that has just changed is remembered: %v", d.known)
	}
	// 2. Once settled it is, and is not read again.
	time.Sleep(settled + 100*time.Millisecond)
	want("first")
	if len(d.known) != 1 {
		t.Fatal("the digest of a settled file is not remembered")
	}
	reads := p.reads
	want("first")
	if p.reads != reads {
		t.Errorf("a remembered file was read again: %d reads, then %d", reads, p.reads)
	}
	// 3. Same inode, size and mtime, other content: ctime tells.
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("FIRST"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Close(), os.Chtimes(path, info.ModTime(), info.ModTime())); err != nil {
		t.Fatal(err)
	}
	want("FIRST")
}

func TestDigestsAreBounded(t *testing.T) {
	t.Parallel()
	var d digests
	for i := range maxDigests * 2 {
		d.remember(fileID{ino: uint64(i)}, "x")
		if _, ok := d.lookup(fileID{ino: uint64(i)}); !ok || len(d.known) > maxDigests {
			t.Fatalf("after %d: %d remembered, newest remembered: %v", i, len(d.known), ok)
		}
	}
}

// TestHangingExecutables: files that never answer cost one user four
// goroutines and other users nothing.
func TestHangingExecutables(t *testing.T) {
	t.Parallel()
	stall, release := context.WithCancel(t.Context())
	a := newAttestor(t, Config{DiscoverWorkloadPath: true})
	for range maxHashing + 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if _, _, err := a.Attest(ctx, process(66, 1, "", "/x", "slow").Stall(stall)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("stalled: %v, want the deadline", err)
		}
		cancel()
	}
	if got := len(a.digests.hashing[66].permits); got != maxHashing {
		t.Errorf("%d executables of one user hang, want %d", got, maxHashing)
	}
	if _, _, err := a.Attest(t.Context(), process(67, 1, "", "/x", "fast")); err != nil {
		t.Errorf("another user: %v", err)
	}
	release()
	a.digests.running.Wait()
	if n := len(a.digests.hashing); n != 0 {
		t.Errorf("%d users are still counted", n)
	}
	if _, _, err := a.Attest(t.Context(), process(66, 1, "", "/x", "fast")); err != nil {
		t.Errorf("the same user afterwards: %v", err)
	}
}

// fileProcess runs a real file and counts reads.
type fileProcess struct {
	*workloadtest.Process
	path  string
	reads int
}

func (p *fileProcess) OpenExe() (fs.File, error) {
	file, err := os.Open(p.path)
	return &countedFile{file, &p.reads}, err
}

type countedFile struct {
	*os.File
	reads *int
}

func (f *countedFile) Read(b []byte) (int, error) { *f.reads++; return f.File.Read(b) }

func TestNames(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("member,", 2000)
	content := strings.Join([]string{
		"# a comment:x:1:",
		"+nis:x:2:", "-nis:x:2:", "::2:", "short:x:2",
		"two:x:2:", "again:x:2:",
		"big:x:3:" + long, "after:x:4:",
		"  blanks:x:5:  ",
		"leading:x:06:", "six:x:6:",
		"weird:na:me:7:",
		"last:x:8:",
	}, "\n")
	n := names{path: write(t, "group", content), fields: 4}
	v, err := n.open()
	if err != nil {
		t.Fatal(err)
	}
	got := map[uint32]string{}
	for id := range uint32(10) {
		if got[id], err = v.name(id); err != nil {
			t.Fatal(err)
		}
	}
	want := map[uint32]string{0: "", 1: "", 2: "two", 3: "big", 4: "after", 5: "blanks", 6: "six", 7: "", 8: "last", 9: ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

func TestNamesFollowTheFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "passwd")
	n := names{path: path, fields: 7}
	want := func(step, name string) {
		t.Helper()
		v, err := n.open()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := v.name(5); err != nil || got != name {
			t.Errorf("%s: name %q, error %v; want %q", step, got, err, name)
		}
	}
	line := func(name string) string { return name + ":x:5:5::/:\n" }
	want("no file", "")
	for step, content := range []string{line("a"), "x\n" + line("bb"), "", line("c")} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(content, "x\n"), ":")
		want("step "+strconv.Itoa(step), name)
		want("again", name)
	}
	// As useradd does: a new file in place of the old one.
	if err := os.Rename(write(t, "new", line("d")), path); err != nil {
		t.Fatal(err)
	}
	want("renamed", "d")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want("removed", "")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	v, err := n.open()
	if err != nil {
		t.Fatal(err)
	}
	if name, err := v.name(5); err == nil {
		t.Errorf("a directory: name %q and no error", name)
	}
}

func FuzzParseStatus(f *testing.F) {
	for _, s := range []string{
		"Name:\tx\nGroups:\t0 1 2 \nNgid:\t0\n", "Groups:\t\n", "Groups:\t1", "Groups:", "Name:\tGroups:\t0\nGroups:\t 7\n",
		"Groups:\t4294967296\n", "Groups:\t-1\n", "Groups:\t1 x\n", "\n\n\n", "Groups:\t1\nGroups:\t2\n",
	} {
		f.Add([]byte(s))
	}
	if own, err := os.ReadFile("/proc/self/status"); err == nil {
		f.Add(own)
	}
	f.Fuzz(func(t *testing.T, status []byte) {
		got, err := parseGroups(status)
		if err != nil {
			if len(got) != 0 {
				t.Errorf("groups %v beside the error %v", got, err)
			}
			return
		}
		// Written again the way the kernel does, the answer is the same.
		again := []byte("Groups:\t")
		for _, id := range got {
			again = append(strconv.AppendUint(again, uint64(id), 10), ' ')
		}
		back, err := parseGroups(append(again, '\n'))
		if diff := cmp.Diff(got, back); err != nil || diff != "" {
			t.Errorf("read again: %v (-want +got):\n%s", err, diff)
		}
		if !bytes.Contains(append([]byte("\n"), status...), []byte("\nGroups:")) {
			t.Errorf("groups %v of a status without the line", got)
		}
	})
}

func FuzzFindName(f *testing.F) {
	for _, s := range []string{passwd, group, "a:b:1:", "+:x:1:", "a:x:1:\x00", "#a:x:1:", ":::", "a:x:1:" + strings.Repeat("m", 5000)} {
		f.Add([]byte(s), uint32(1))
	}
	f.Fuzz(func(t *testing.T, content []byte, id uint32) {
		name, err := findName(bytes.NewReader(content), id, 4)
		if err != nil || name == "" {
			return
		}
		if strings.ContainsAny(name, ":\n") || !bytes.Contains(content, fmt.Appendf(nil, ":%d:", id)) {
			t.Errorf("name %q of id %d", name, id)
		}
	})
}

func BenchmarkAttest(b *testing.B) {
	for name, cfg := range map[string]Config{"identity": {}, "path": {DiscoverWorkloadPath: true, WorkloadSizeLimit: -1}} {
		b.Run(name, func(b *testing.B) {
			a := New(cfg)
			p := process(0, 0, "0", "/usr/bin/web", "")
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := a.Attest(b.Context(), p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
