package k8s

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestS08_EventLimit(t *testing.T) {
	t.Parallel()
	for size, ok := range map[int]bool{maxEvent - 1: true, maxEvent: true, maxEvent + 1: false} {
		body := &meter{r: strings.NewReader(event(size)), left: maxEvent}
		var got map[string]string
		err := json.NewDecoder(body).Decode(&got)
		if (err == nil) != ok || !ok && !errors.Is(err, errLongEvent) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	// Each event has the whole of it.
	body := &meter{r: strings.NewReader(strings.Repeat(event(maxEvent/2), 4))}
	events := json.NewDecoder(body)
	for range 4 {
		body.left = maxEvent
		var got map[string]string
		if err := events.Decode(&got); err != nil {
			t.Fatal(err)
		}
	}
	if err := events.Decode(new(string)); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// event is an object of a size in bytes.
func event(size int) string { return `{"a":"` + strings.Repeat("x", size-8) + `"}` }

func TestS08_CredentialLimit(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "token")
	for size, ok := range map[int]bool{0: false, 1: true, maxCredential - 1: true, maxCredential: true, maxCredential + 1: false} {
		if err := os.WriteFile(path, []byte(strings.Repeat("x", size)), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readCredential(path)
		if (err == nil) != ok || ok && len(got) != size {
			t.Errorf("%d bytes: %d bytes, %v", size, len(got), err)
		}
	}
}

func TestDeletedPodsAreBounded(t *testing.T) {
	t.Parallel()
	s := newPods(false, false)
	for i := range 3 * maxDeleted {
		uid := fmt.Sprint(i)
		s.set(&pod{uid: uid})
		s.remove(uid)
	}
	if len(s.gone) != maxDeleted || len(s.goneOrder) != maxDeleted || len(s.byUID) != 0 {
		t.Errorf("%d and %d deleted, %d known", len(s.gone), len(s.goneOrder), len(s.byUID))
	}
	if v := s.look(place{pod: fmt.Sprint(3*maxDeleted - 1)}).verdict; v != deleted {
		t.Errorf("the last is %v", v)
	}
}

// TestPauses are never over their bounds, and not the same for everyone.
func TestPauses(t *testing.T) {
	t.Parallel()
	forbidden := &statusError{code: http.StatusForbidden}
	for name, tc := range map[string]struct {
		patient     bool
		failures    int
		err         error
		least, most time.Duration
	}{
		"first":              {err: io.EOF, least: firstRetry / 2, most: firstRetry},
		"third":              {failures: 2, err: io.EOF, least: 2 * firstRetry, most: 4 * firstRetry},
		"many":               {failures: 1 << 40, err: io.EOF, least: lastRetry / 2, most: lastRetry},
		"ended":              {failures: 100, least: 500 * time.Millisecond, most: time.Second},
		"forbidden":          {failures: 100, err: forbidden, least: lastRetry / 2, most: lastRetry},
		"forbidden, patient": {patient: true, failures: 100, err: forbidden, least: deniedRetry / 2, most: deniedRetry},
		"forbidden at first": {patient: true, err: forbidden, least: firstRetry / 2, most: firstRetry},
	} {
		w := &watcher[podObject]{contact: &contact{patient: tc.patient}}
		seen := map[time.Duration]bool{}
		for range 100 {
			d := w.pause(tc.failures, tc.err)
			if d < tc.least || d > tc.most {
				t.Errorf("%s: %v", name, d)
			}
			seen[d] = true
		}
		if len(seen) < 50 {
			t.Errorf("%s: only %d pauses", name, len(seen))
		}
	}
}
