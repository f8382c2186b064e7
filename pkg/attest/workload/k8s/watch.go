package k8s

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"github.com/credence-id/credence/pkg/telemetry"
)

const (
	acceptJSON = "application/json"
	// acceptMetadata asks for objects without spec and status.
	acceptMetadata  = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
	acceptMetadatas = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

	// watchFor is how long one watch is asked to last, at least; up to twice
	// that, so that the watches of a fleet do not end together.
	watchFor = 5 * time.Minute
	// firstRetry and lastRetry bound the pauses after failures.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 30 * time.Second
	// steady is how long a watch has lasted that the pauses begin anew after.
	steady = 10 * time.Second
	// deniedRetry bounds the pauses after refusals, where the kubelet is asked
	// meanwhile: rights change when somebody changes them. The first are short:
	// an API server that has just started refuses what it has not read yet.
	deniedRetry = 10 * time.Minute
)

// resource is what is watched, and what to do with it.
type resource[T any] struct {
	what         string // in logs
	path         string
	query        url.Values
	accept, each string // types of a list, and of an object of a watch
	meta         func(*T) *metaObject
	replace      func([]T)
	set          func(*T)
	remove       func(*T)
}

// watcher keeps a list up to date: list, then watch from that revision, and list
// again only when the API server cannot go on from it.
type watcher[T any] struct {
	resource[T]
	client   *client
	contact  *contact
	log      *slog.Logger
	metrics  *metrics
	revision string // of what is held; empty: list first
	listFrom string // the least revision that a list is to have; 0: any
}

// Run follows until ctx ends.
func (w *watcher[T]) Run(ctx context.Context) error {
	failures := 0
	w.listFrom = "0"
	for {
		began := time.Now()
		err := w.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > steady {
			failures = 0
		}
		pause := w.pause(failures, err)
		failures++
		w.contact.failed(ctx, err, pause)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// pause is up to twice as long with each failure, and never the same for all
// agents of a cluster.
func (w *watcher[T]) pause(failures int, err error) time.Duration {
	grown := firstRetry << min(failures, 20)
	longest := min(grown, lastRetry)
	switch {
	case err == nil:
		longest = min(longest, time.Second) // nothing is wrong
	case denied(err) && w.contact.patient:
		longest = min(grown, deniedRetry)
	}
	return longest/2 + rand.N(longest/2) //nolint:gosec // spreads agents out, keeps no secret
}

// follow lists if it must, and watches until the watch ends. A watch that ends
// in its time is no error, and one that cannot go on is not one of contact.
func (w *watcher[T]) follow(ctx context.Context) error {
	if w.revision == "" {
		if err := w.list(ctx); err != nil {
			return err
		}
		w.contact.made(ctx)
	}
	err := w.watch(ctx)
	if gone(err) {
		w.log.DebugContext(ctx, "the API server cannot continue a watch, listing again", telemetry.Name, w.what, telemetry.Err, err)
		w.revision = ""
		return nil
	}
	return err
}

func (w *watcher[T]) list(ctx context.Context) error {
	query := cloneQuery(w.query)
	if w.listFrom != "" {
		query.Set("resourceVersion", w.listFrom)
	}
	if w.listFrom != "" && w.listFrom != "0" {
		query.Set("resourceVersionMatch", "NotOlderThan") // never back to what was before
	}
	var list struct {
		Metadata metaObject `json:"metadata"`
		Items    []T        `json:"items"`
	}
	if err := w.client.list(ctx, w.path+"?"+query.Encode(), w.accept, &list); err != nil {
		if e, ok := errors.AsType[*statusError](err); ok && (e.code == http.StatusGone || e.code == http.StatusGatewayTimeout) {
			w.listFrom = "" // a store that was put back: the newest there is
		}
		return fmt.Errorf("listing %s: %w", w.what, err)
	}
	if list.Metadata.ResourceVersion == "" {
		return fmt.Errorf("listing %s: the list has no resourceVersion", w.what)
	}
	w.replace(list.Items)
	w.metrics.lists.WithLabelValues(w.what).Inc()
	w.revision = list.Metadata.ResourceVersion
	w.listFrom = w.revision
	return nil
}

// watch applies events until the answer ends.
func (w *watcher[T]) watch(ctx context.Context) error {
	query := cloneQuery(w.query)
	query.Set("watch", "1")
	query.Set("allowWatchBookmarks", "true")
	query.Set("resourceVersion", w.revision)
	lasts := watchFor + rand.N(watchFor) //nolint:gosec // spreads agents out, keeps no secret
	query.Set("timeoutSeconds", fmt.Sprint(int(lasts.Seconds())))
	resp, err := w.client.get(ctx, w.path+"?"+query.Encode(), w.each)
	if err != nil {
		return fmt.Errorf("watching %s: %w", w.what, err)
	}
	defer func() { _ = resp.Body.Close() }()
	w.contact.made(ctx)
	body := &meter{r: resp.Body}
	events := json.NewDecoder(body)
	for {
		body.left = maxEvent
		var e struct {
			Type   string          `json:"type"`
			Object json.RawMessage `json:"object"`
		}
		if err := events.Decode(&e); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("watching %s: %w", w.what, notJSON(err))
		}
		if err := w.apply(e.Type, e.Object); err != nil {
			return fmt.Errorf("watching %s: %w", w.what, err)
		}
	}
}

func (w *watcher[T]) apply(kind string, object json.RawMessage) error {
	if kind == "ERROR" {
		var s struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		}
		if err := json.Unmarshal(object, &s); err != nil {
			return errors.New("an error that is no Status")
		}
		return &statusError{who: w.client.name, code: s.Code, message: s.Message}
	}
	o := new(T)
	if err := json.Unmarshal(object, o); err != nil {
		w.revision = "" // what this event said is lost
		return notJSON(err)
	}
	w.metrics.events.WithLabelValues(w.what).Inc()
	switch kind {
	case "ADDED", "MODIFIED":
		w.set(o)
	case "DELETED":
		w.remove(o)
	case "BOOKMARK":
	default:
		w.revision = ""
		return errors.New("an event that is not ADDED, MODIFIED, DELETED, BOOKMARK or ERROR")
	}
	if rv := w.meta(o).ResourceVersion; rv != "" {
		w.revision, w.listFrom = rv, rv
	}
	return nil
}

func cloneQuery(q url.Values) url.Values {
	c := url.Values{}
	for k, v := range q {
		c[k] = v
	}
	return c
}

var errLongEvent = fmt.Errorf("an event is longer than %d bytes", maxEvent)

// meter ends a stream whose next value is too long.
type meter struct {
	r    io.Reader
	left int
}

func (m *meter) Read(p []byte) (int, error) {
	if m.left <= 0 {
		return 0, errLongEvent
	}
	n, err := m.r.Read(p[:min(len(p), m.left)])
	m.left -= n
	return n, err
}
