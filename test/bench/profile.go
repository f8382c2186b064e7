package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
)

// profile takes the first server's profiles under load.
func (t *theatre) profile(ctx context.Context) error {
	seconds := min(max(int(t.spec.duration.Seconds())-10, 1), 60)
	for _, p := range []struct{ name, query string }{
		{"cpu.pprof", fmt.Sprintf("profile?seconds=%d", seconds)}, {"heap.pprof", "heap"}, {"allocs.pprof", "allocs"}, {"goroutines.txt", "goroutine?debug=1"},
	} {
		if err := t.fetch(ctx, p.name, p.query); err != nil {
			return err
		}
	}
	return nil
}

func (t *theatre) fetch(ctx context.Context, name, query string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/%s", t.members[0].profiling, query), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	f, err := os.Create(filepath.Join(t.spec.profiles, name))
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	return errors.Join(err, f.Close())
}
