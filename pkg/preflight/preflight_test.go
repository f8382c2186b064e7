package preflight

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSaysWhatUsingWouldSay: the answer is what the system says when the path is
// then used, and looking at it leaves nothing behind.
func TestSaysWhatUsingWouldSay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	locked := filepath.Join(dir, "locked")
	if err := os.Mkdir(locked, 0o500); err != nil {
		t.Fatal(err)
	}
	asRoot := os.Geteuid() == 0 // for whom nothing is locked
	mkdir := func(path string) error { return os.MkdirAll(filepath.Join(path, "x"), 0o700) }
	appendTo := func(path string) error {
		f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			err = f.Close()
		}
		return err
	}
	parent := func(path string) error { return Parent(path, filepath.Join(dir, "made")) }
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		path, made string
		fine       bool
	}{
		"in it":                    {dir + "/made/f", dir + "/made/", true},
		"above it":                 {dir + "/new/f", dir + "/new/made", true},
		"below it":                 {dir + "/made/below/f", dir + "/made", false},
		"beside it":                {dir + "/made2/f", dir + "/made", false},
		"in it, one relative":      {here + "/made/f", "./made", true},
		"in it, the other":         {"made/f", here + "/made", true},
		"in one that begins alike": {dir + "/..made/f", dir + "/made", false},
	} {
		if err := Parent(test.path, test.made); (err == nil) != test.fine {
			t.Errorf("a file %s: %v", name, err)
		}
	}
	for name, test := range map[string]struct {
		check, use func(string) error
		path       string
		want       string // in the error; empty: fine
	}{
		"directory":                {Dir, mkdir, filepath.Join(dir, "d1"), ""},
		"directory, two levels":    {Dir, mkdir, filepath.Join(dir, "d2", "d"), ""},
		"below a file":             {Dir, mkdir, filepath.Join(file, "d"), "not a directory"},
		"a file":                   {Dir, mkdir, file, "not a directory"},
		"locked directory":         {Dir, mkdir, locked, "permission denied"},
		"below a locked directory": {Dir, mkdir, filepath.Join(locked, "d"), "permission denied"},
		"log":                      {LogFile, appendTo, filepath.Join(dir, "log"), ""},
		"log that is there":        {LogFile, appendTo, file, ""},
		"log without a directory":  {LogFile, appendTo, filepath.Join(dir, "none", "log"), "no such file"},
		"log that is a directory":  {LogFile, appendTo, dir, "is a directory"},
		"file":                     {parent, appendTo, filepath.Join(dir, "f1"), ""},
		"file without a directory": {parent, appendTo, filepath.Join(dir, "none", "f"), "no such file"},
		"file below a file":        {parent, appendTo, filepath.Join(file, "f"), "not a directory"},
		"file in a locked one":     {parent, appendTo, filepath.Join(locked, "f"), "permission denied"},
		"locked log":               {LogFile, appendTo, filepath.Join(locked, "log"), "permission denied"},
	} {
		if test.want == "permission denied" && asRoot {
			test.want = ""
		}
		_, before := os.Lstat(test.path)
		err := test.check(test.path)
		if _, after := os.Lstat(test.path); (before == nil) != (after == nil) {
			t.Errorf("%s: looking made or removed it", name)
		}
		used := test.use(test.path)
		if (err == nil) != (used == nil) {
			t.Errorf("%s: said %v, using it %v", name, err, used)
		}
		if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: said %v, want %q", name, err, test.want)
		}
		if test.want == "" && err != nil {
			t.Errorf("%s: said %v", name, err)
		}
	}
}
