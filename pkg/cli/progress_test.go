package cli

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

func progressOf(t *testing.T, args ...string) *Progress {
	t.Helper()
	flags := pflag.NewFlagSet("x", pflag.ContinueOnError)
	p := ProgressFlag(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestProgressIsSilentUnlessAsked(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	file, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, w := range []io.Writer{&out, file} {
		p := progressOf(t)
		p.Start(w, "creating entries", 10)
		p.Add(10)
		p.End()
	}
	if info, err := file.Stat(); err != nil || info.Size() != 0 || out.Len() != 0 {
		t.Errorf("wrote %q, and %v, %v", out.String(), info, err)
	}
}

func TestProgressIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := progressOf(t, "--progress")
		p.End() // Nothing has begun.
		p.Start(&out, "creating entries", 100)
		for range 100 {
			time.Sleep(50 * time.Millisecond)
			p.Add(1)
		}
		p.End()
		p.End()
		p.Start(&out, "looking", 0)
		p.Start(&out, "ending", 1)
		p.Add(1)
		p.End()
		want := "creating entries: 0 of 100\ncreating entries: 40 of 100\ncreating entries: 80 of 100\ncreating entries: 100 of 100\nlooking: 0\nending: 0 of 1\nending: 1 of 1\n"
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("progress (-want +got):\n%s", diff)
		}
	})
}
