package audit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/pkg/audit"
)

// records decodes what was logged, without the time.
func records(t *testing.T, buf *bytes.Buffer) []map[string]any {
	t.Helper()
	var all []map[string]any
	dec := json.NewDecoder(buf)
	for {
		var one map[string]any
		if err := dec.Decode(&one); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		delete(one, "time")
		all = append(all, one)
	}
}

func TestBeginWritesIntentThenOutcome(t *testing.T) {
	t.Parallel()
	event := audit.Event{
		Action: "x509svid.mint", Caller: "uid:0", CallerKind: "local", Subject: "spiffe://td/a",
		Attrs: []slog.Attr{slog.Duration("ttl", time.Hour)},
	}
	base := func(msg string) map[string]any {
		return map[string]any{
			"level": "INFO", "msg": msg, "stream": "audit", "audit_id": 1.0, "action": "x509svid.mint",
			"caller": "uid:0", "caller_kind": "local", "subject": "spiffe://td/a", "ttl": "1h0m0s",
		}
	}
	with := func(m map[string]any, more ...string) map[string]any {
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		return m
	}
	tests := []struct {
		name string
		err  error
		want map[string]any
	}{
		{"done", nil, with(base("audit outcome"), "outcome", "done", "serial", "42")},
		{"refused", errors.New("no"), with(base("audit outcome"), "outcome", "refused", "err", "no", "serial", "42")},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var buf bytes.Buffer
			done := audit.New(slog.New(slog.NewJSONHandler(&buf, nil))).Begin(t.Context(), event)
			if got := bytes.Count(buf.Bytes(), []byte("\n")); got != 1 {
				t.Fatalf("records before the outcome: %d, want the intent", got)
			}
			done(test.err, slog.String("serial", "42"))
			done(errors.New("second call")) // must not be recorded
			if diff := cmp.Diff([]map[string]any{base("audit intent"), test.want}, records(t, &buf)); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNilLogWritesNothing(t *testing.T) {
	t.Parallel()
	log := audit.New(nil)
	if log != nil {
		t.Fatal("New(nil) is not nil")
	}
	log.Record(t.Context(), audit.Event{}, nil)
	log.Begin(t.Context(), audit.Event{})(nil)
}

func TestRecordsAreBounded(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é", audit.MaxText)
	attrs := make([]slog.Attr, audit.MaxAttrs+3)
	for i := range attrs {
		attrs[i] = slog.Any("k", errors.New(long))
	}
	var buf bytes.Buffer
	log := audit.New(slog.New(slog.NewJSONHandler(&buf, nil)))
	log.Record(t.Context(), audit.Event{Action: long, Subject: long, Attrs: attrs}, errors.New(long))
	if got, limit := buf.Len(), (audit.MaxAttrs+5)*(audit.MaxText+100); got > limit {
		t.Errorf("record of %d bytes, want at most %d", got, limit)
	}
	record := records(t, &buf)[0]
	if got := record["dropped_attrs"]; got != 3.0 {
		t.Errorf("dropped_attrs = %v, want 3", got)
	}
	for _, key := range []string{"action", "subject", "err", "k"} {
		text := record[key].(string)
		if len(text) > audit.MaxText || !utf8.ValidString(text) || !strings.HasSuffix(text, "…") {
			t.Errorf("%s is %d bytes, ends in %q", key, len(text), text[len(text)-6:])
		}
	}
}

func TestIDsAreUniqueAcrossGoroutines(t *testing.T) {
	t.Parallel()
	var buf bytes.Buffer
	log := audit.New(slog.New(slog.NewJSONHandler(&buf, nil)))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { log.Begin(context.WithoutCancel(t.Context()), audit.Event{Action: "a.b"})(nil) })
	}
	wg.Wait()
	count := make(map[any]int)
	for _, record := range records(t, &buf) {
		count[record["audit_id"]]++
	}
	if len(count) != 50 {
		t.Errorf("%d different ids, want 50", len(count))
	}
	for id, n := range count {
		if n != 2 {
			t.Errorf("audit_id %v has %d records, want intent and outcome", id, n)
		}
	}
}
