package bolt_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/store/bolt"
	"github.com/credence-id/credence/pkg/store/storetest"
)

// errNoTrace is why a process cannot be traced here.
var errNoTrace = errors.New("system calls cannot be traced here")

// TestKill kills a process with 8 clients again and again, and opens what it
// leaves.
func TestKill(t *testing.T) {
	t.Parallel()
	path := tempPath(t)
	rng := rand.New(rand.NewPCG(1, 2))
	var acked []storetest.Ack
	for round := range 6 {
		before := len(acked)
		acked = append(acked, killAfter(t, path, 1+rng.IntN(400))...)
		s := open(t, bolt.Config{Path: path})
		if err := storetest.CheckCrash(t.Context(), s, acked); err != nil {
			t.Fatalf("round %d, after %d acks: %v", round, len(acked), err)
		}
		if err := s.Close(); err != nil {
			t.Fatalf("Close: %v", err)
		}
		t.Logf("round %d: killed after %d acks", round, len(acked)-before)
	}
}

// killAfter runs the load and kills it when n updates were acknowledged. It
// returns these and those that were on the way.
func killAfter(t *testing.T, path string, n int) []storetest.Ack {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = childEnviron(fmt.Sprintf("load %s 8 1000000", path))
	cmd.ExtraFiles = []*os.File{w}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var acked []storetest.Ack
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		a, err := storetest.ParseAck(lines.Text())
		if err != nil {
			t.Fatal(err)
		}
		if acked = append(acked, a); len(acked) == n {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); len(acked) < n {
		t.Fatalf("the load ended by itself: %v: %s", err, stderr.Bytes())
	}
	return acked
}

// TestCrash records every write and sync of the real engine, from the making
// of the file on, and opens what a crash after each of them could leave.
func TestCrash(t *testing.T) {
	t.Parallel()
	path := tempPath(t)
	updates := 20
	switch {
	case os.Getenv("SOAK") != "":
		updates = 1000
	case testing.Short():
		updates = 4
	}
	rec := &recorder{dir: filepath.Dir(path)}
	if err := rec.run(fmt.Sprintf("load %s 4 %d", path, updates)); err != nil {
		if errors.Is(err, errNoTrace) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	wantFaithful(t, rec.ops, path)

	var g errgroup.Group
	g.SetLimit(4)
	images, syncs := 0, 0
	r := newReplayer()
	for i, op := range rec.ops {
		if op.kind == opSync {
			syncs++
		}
		if !r.step(op) {
			continue
		}
		for j, crash := range crashes {
			rng := rand.New(rand.NewPCG(uint64(i), uint64(j)))
			image, acked := r.image(crash.keep(rng)), r.acked[:len(r.acked):len(r.acked)]
			images++
			g.Go(func() error {
				if err := checkImage(t, image, filepath.Base(path), acked, i%4 == 0); err != nil {
					return fmt.Errorf("crash after operation %d (%v), %s: %w", i, op.kind, crash.name, err)
				}
				return nil
			})
		}
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("%d operations, %d syncs, %d acks: %d images opened", len(rec.ops), syncs, len(r.acked), images)
	if want := 4 * updates; len(r.acked) != want || syncs < updates {
		t.Errorf("recorded %d acks and %d syncs, want %d and at least %d", len(r.acked), syncs, want, updates)
	}
}

// wantFaithful checks the recording itself: replayed as a whole it gives the
// file that is there.
func wantFaithful(t *testing.T, ops []diskOp, path string) {
	t.Helper()
	r := newReplayer()
	for _, op := range ops {
		r.step(op)
	}
	d := r.image(func(*change, bool) int { return whole })
	if len(d.names) != 1 {
		t.Fatalf("the recording leaves the files %v", d.names)
	}
	dir := t.TempDir()
	d.save(t, dir)
	got, err := os.ReadFile(filepath.Join(dir, filepath.Base(path)))
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("the recording, replayed, differs from the file")
	}
}

// checkImage opens one possible state of the disk.
func checkImage(t *testing.T, image *disk, base string, acked []storetest.Ack, thorough bool) (err error) {
	dir, err := os.MkdirTemp(imageDir(t), "image")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	image.save(t, dir)
	path := filepath.Join(dir, base)
	s, err := bolt.Open(bolt.Config{Path: path})
	if err != nil {
		return err
	}
	err = storetest.CheckCrash(context.Background(), s, acked)
	if err := errors.Join(err, s.Close()); err != nil {
		return err
	}
	left, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(left) != 1 {
		return fmt.Errorf("opening left %v behind", left)
	}
	if !thorough {
		return nil
	}
	return checkPages(path)
}

// checkPages looks for pages that are used twice, or lost.
func checkPages(path string) error {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, PreLoadFreelist: true})
	if err != nil {
		return err
	}
	err = db.View(func(tx *bbolt.Tx) error {
		var all []error
		for err := range tx.Check() {
			all = append(all, err)
		}
		return errors.Join(all...)
	})
	return errors.Join(err, db.Close())
}

// imageDir is where thousands of small files cost least.
func imageDir(t *testing.T) string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		if probe, err := os.CreateTemp("/dev/shm", "credence"); err == nil {
			_ = probe.Close()
			_ = os.Remove(probe.Name())
			return "/dev/shm"
		}
	}
	return t.TempDir()
}
