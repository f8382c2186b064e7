package k8s

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/credence-id/credence/pkg/attest/workload/workloadtest"
	"golang.org/x/tools/txtar"
)

// fixture is one of testdata/proc: the agent's own cgroup and whether it has a
// cgroup namespace of its own; cgroup and mountinfo of a process; whether that
// has the agent's user namespace; and the answer that is wanted. Where it comes
// from stands at its beginning.
type fixture struct {
	name, source, self, namespace, cgroup, mountinfo, userns, want string
}

const agentsUserNS = "user:[1]"

func fixtures(t testing.TB) []fixture {
	t.Helper()
	paths, err := filepath.Glob("testdata/proc/*.txtar")
	if err != nil || len(paths) < 50 {
		t.Fatalf("%d fixtures, %v", len(paths), err)
	}
	var all []fixture
	for _, path := range paths {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f := fixture{name: strings.TrimSuffix(filepath.Base(path), ".txtar"), source: string(archive.Comment)}
		parts := map[string]*string{
			"self": &f.self, "namespace": &f.namespace, "cgroup": &f.cgroup, "mountinfo": &f.mountinfo, "userns": &f.userns, "want": &f.want,
		}
		for _, file := range archive.Files {
			into := parts[file.Name]
			if into == nil {
				t.Fatalf("%s: there is no part %s", path, file.Name)
			}
			*into = string(file.Data)
		}
		all = append(all, f)
	}
	return all
}

func (f fixture) locator(t testing.TB) locator {
	t.Helper()
	v, err := newView([]byte(f.self), strings.TrimSpace(f.namespace) == "own")
	if err != nil {
		t.Fatal(err)
	}
	return locator{view: v, userNS: agentsUserNS}
}

func (f fixture) process() *workloadtest.Process {
	p := &workloadtest.Process{ID: 7, Files: fstest.MapFS{"cgroup": {Data: []byte(f.cgroup)}}, Links: map[string]string{"ns/user": "user:[2]"}}
	if strings.TrimSpace(f.userns) == "same" {
		p.Links["ns/user"] = agentsUserNS
	}
	if f.mountinfo != "" {
		p.Files["mountinfo"] = &fstest.MapFile{Data: []byte(f.mountinfo)}
	}
	return p
}

func TestCorpus(t *testing.T) {
	t.Parallel()
	for _, f := range fixtures(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			if !strings.Contains(f.source, "Source: ") {
				t.Error("it does not say where it comes from")
			}
			at, err := f.locator(t).find(t.Context(), f.process())
			want := strings.TrimSpace(f.want)
			got := "none"
			switch text, isError := strings.CutPrefix(want, "error "); {
			case isError && err != nil && strings.Contains(err.Error(), text):
				got = want
			case err != nil:
				got = "error " + err.Error()
			case at != (place{}):
				got = fmt.Sprintf("pod %s container %s", at.pod, at.container)
			}
			if got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestBrokenFiles(t *testing.T) {
	t.Parallel()
	good := fixture{self: "0::/\n", namespace: "first", cgroup: "0::/\n", mountinfo: "1 2 0:3 / /a rw - cgroup2 cgroup rw\n", userns: "same"}
	if _, err := good.locator(t).find(t.Context(), good.process()); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*fixture){
		"cgroup empty":              func(f *fixture) { f.cgroup = "" },
		"cgroup cut off":            func(f *fixture) { f.cgroup = "0::/kubepods/burstable/pod" },
		"cgroup without controller": func(f *fixture) { f.cgroup = "0:/x\n" },
		"mountinfo cut off":         func(f *fixture) { f.mountinfo = strings.TrimSuffix(f.mountinfo, "\n") },
		"mountinfo without a root":  func(f *fixture) { f.mountinfo = "1 2 0:3 - cgroup2 cgroup rw\n" },
		"mountinfo without a type":  func(f *fixture) { f.mountinfo = "1 2 0:3 / /a rw\n" },
	} {
		f := good
		change(&f)
		if at, err := f.locator(t).find(t.Context(), f.process()); !errors.Is(err, errMalformed) {
			t.Errorf("%s: %v, %v", name, at, err)
		}
	}
	f := good
	f.mountinfo = ""
	if _, err := f.locator(t).find(t.Context(), f.process()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no mountinfo: %v", err)
	}
}

// TestVerbose: what is looked at is shown when somebody wants to see it.
func TestVerbose(t *testing.T) {
	t.Parallel()
	for _, verbose := range []bool{false, true} {
		var out bytes.Buffer
		l := locator{view: view{roots: []root{{}}}}
		if verbose {
			l.log = slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
		}
		f := fixture{cgroup: "0::/system.slice/x.service\n"}
		if _, err := l.find(t.Context(), f.process()); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out.String(), "/system.slice/x.service") != verbose {
			t.Errorf("verbose %v: %q", verbose, out.String())
		}
	}
}

// FuzzLocate: whatever the files say, the answer is of the form that the kubelet
// and a runtime give it; and nothing that a container makes below its own cgroup
// changes where it is.
func FuzzLocate(f *testing.F) {
	for _, x := range fixtures(f) {
		f.Add([]byte(x.self), strings.TrimSpace(x.namespace) == "own", []byte(x.cgroup), []byte(x.mountinfo), "/kubepods/burstable/podf00dfeed-1111-4222-8333-944444444444/"+strings.Repeat("dead", 16))
	}
	f.Fuzz(func(t *testing.T, own []byte, inNamespace bool, cgroup, mountinfo []byte, nested string) {
		v, err := newView(own, inNamespace)
		if err != nil {
			return
		}
		l := locator{view: v, userNS: agentsUserNS}
		x := fixture{cgroup: string(cgroup), mountinfo: string(mountinfo), userns: "same"}
		at, err := l.find(t.Context(), x.process())
		if err != nil && at != (place{}) {
			t.Errorf("%v beside %v", at, err)
		}
		if at == (place{}) {
			return
		}
		if uid, ok := podUID(at.pod); at.pod != "" && (!ok || uid != at.pod) {
			t.Errorf("pod %q", at.pod)
		}
		if len(at.container) != 64 || !isHex(at.container) {
			t.Errorf("container %q", at.container)
		}
		paths, err := parseCgroup(cgroup)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			one, ok, err := v.locate(path)
			if err != nil || !ok || strings.HasSuffix(path, " (deleted)") {
				continue
			}
			if below, ok, err := v.locate(path + "/" + nested); below != one || !ok || err != nil {
				t.Errorf("%q is %v, and %q below it is %v, %v", path, one, nested, below, err)
			}
		}
	})
}
