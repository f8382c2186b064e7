package kubetest

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

// Fake is an API server of this process: objects in memory, lists, watches, the
// patches that this program makes, tokens of service accounts. It checks what is
// allowed, and nothing of what the objects say.
type Fake struct {
	*Cluster

	signer signer

	mu sync.Mutex
	// The rest is guarded by mu.
	objects map[string]map[string]any // by path
	version int
	events  []event
	oldest  int             // the version from which events are known
	news    chan struct{}   // closed and replaced with each event
	broken  int             // how often watches were broken
	grants  map[string]bool // "token rule"
}

// event is one change.
type event struct {
	version int
	kind    string // ADDED, MODIFIED or DELETED
	folder  string // the path of a list that has it
	object  map[string]any
}

// NewFake starts one for a test.
func NewFake(t testing.TB) *Fake {
	t.Helper()
	f := &Fake{
		objects: make(map[string]map[string]any), news: make(chan struct{}), grants: make(map[string]bool),
		signer: newSigner(t), Cluster: &Cluster{Issuer: "https://kubernetes.default.svc"},
	}
	srv := httptest.NewUnstartedServer(f)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(func() {
		srv.CloseClientConnections() // watches have no end of their own
		srv.Close()
	})
	f.url = srv.URL
	f.caPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	f.grant = func(_ testing.TB, rules []string) string {
		token := uuid.NewString()
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, r := range rules {
			f.grants[token+" "+r] = true
		}
		return token
	}
	f.admin(t, adminToken)
	return f
}

// Forget makes every version up to now too old to watch from, as an API server
// does after a while.
func (f *Fake) Forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version++
	f.oldest, f.events = f.version, nil
	f.tell()
}

// Break ends the watches that are open.
func (f *Fake) Break() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken++
	f.tell()
}

// tell wakes the watches; mu is held.
func (f *Fake) tell() {
	close(f.news)
	f.news = make(chan struct{})
}

// target is what a call is about.
type target struct {
	folder   string // /api/v1/namespaces/x/pods
	name     string
	sub      string // such as token
	resource string // pods, or with the group behind it
	verb     string
}

// parseTarget reads a path such as /apis/<group>/v1/<resource>/<name>.
func parseTarget(r *http.Request) target {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	head, group := 2, ""
	if parts[0] == "apis" {
		head, group = 3, "."+parts[1]
	}
	if len(parts) > head+2 && parts[head] == "namespaces" {
		head += 2
	}
	var t target
	t.folder = "/" + strings.Join(parts[:min(head+1, len(parts))], "/")
	if len(parts) > head {
		t.resource = parts[head] + group
	}
	if len(parts) > head+1 {
		t.name = parts[head+1]
	}
	if len(parts) > head+2 {
		t.sub = parts[head+2]
		t.resource = parts[head] + "/" + t.sub + group
	}
	t.verb = map[string]string{
		http.MethodPost: "create", http.MethodPatch: "patch", http.MethodPut: "update", http.MethodDelete: "delete",
	}[r.Method]
	switch {
	case t.verb != "":
	case t.name != "":
		t.verb = "get"
	case isWatch(r):
		t.verb = "watch"
	default:
		t.verb = "list"
	}
	return t
}

func isWatch(r *http.Request) bool {
	w := r.URL.Query().Get("watch")
	return w == "true" || w == "1"
}

// ServeHTTP is http.Handler.
func (f *Fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t := parseTarget(r)
	rule := t.verb + " " + t.resource
	if r.URL.Path == keySetPath {
		rule = "get " + keySetPath
	}
	if !f.may(r, rule) {
		refuse(w, http.StatusForbidden, "Forbidden", "cannot "+rule)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	var sent map[string]any
	if len(body) > 0 {
		if err := json.Unmarshal(body, &sent); err != nil {
			refuse(w, http.StatusBadRequest, "BadRequest", err.Error())
			return
		}
	}
	switch {
	case r.URL.Path == keySetPath:
		w.Header().Set("Content-Type", "application/jwk-set+json")
		_, _ = w.Write(f.signer.keySet)
	case t.resource == "tokenreviews.authentication.k8s.io":
		reply(w, f.reviewToken(sent))
	case t.sub == "token":
		f.makeToken(w, t, sent)
	case t.verb == "watch":
		f.watch(w, r, t)
	default:
		f.answer(w, r, t, sent)
	}
}

// may says whether the caller is allowed to.
func (f *Fake) may(r *http.Request, rule string) bool {
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	f.mu.Lock()
	defer f.mu.Unlock()
	return token == adminToken || f.grants[token+" "+rule]
}

// answer serves the calls that are over at once.
func (f *Fake) answer(w http.ResponseWriter, r *http.Request, t target, sent map[string]any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t.verb == "create" {
		t.name = field(sent, "metadata", "name")
	}
	path := t.folder + "/" + t.name
	old, there := f.objects[path]
	apply := strings.HasPrefix(r.Header.Get("Content-Type"), "application/apply-patch")
	switch {
	case t.verb == "list":
		reply(w, f.list(r, t))
		return
	case t.verb == "create" && there:
		refuse(w, http.StatusConflict, "AlreadyExists", path)
		return
	case t.verb != "create" && !there && !apply:
		refuse(w, http.StatusNotFound, "NotFound", path+" not found")
		return
	case there && conflicts(old, sent):
		refuse(w, http.StatusConflict, "Conflict", path+" has changed")
		return
	}
	now := sent
	switch t.verb {
	case "get":
		reply(w, partial(r, old))
		return
	case "delete":
		f.commit("DELETED", t, path, old)
		delete(f.objects, path)
		reply(w, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Success"})
		return
	case "patch":
		now = merge(old, sent)
	}
	kind := "MODIFIED"
	if !there {
		kind = "ADDED"
		metadata := now["metadata"].(map[string]any)
		metadata["uid"] = uuid.NewString()
		metadata["creationTimestamp"] = time.Now().UTC().Format(time.RFC3339)
	}
	f.commit(kind, t, path, now)
	reply(w, partial(r, now))
}

// commit makes a new version; mu is held. Objects are replaced, never changed.
func (f *Fake) commit(kind string, t target, path string, object map[string]any) {
	f.version++
	object = clone(object)
	object["metadata"].(map[string]any)["resourceVersion"] = strconv.Itoa(f.version)
	f.objects[path] = object
	f.events = append(f.events, event{f.version, kind, t.folder, object})
	f.tell()
}

// list is all that the query asks for; mu is held.
func (f *Fake) list(r *http.Request, t target) map[string]any {
	var paths []string
	for path, object := range f.objects {
		if strings.HasPrefix(path, t.folder+"/") && selected(r, object) {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	items := []any{}
	for _, path := range paths {
		items = append(items, partial(r, f.objects[path]))
	}
	out := map[string]any{"kind": "List", "apiVersion": "v1", "metadata": map[string]any{"resourceVersion": strconv.Itoa(f.version)}, "items": items}
	if asksPartial(r) {
		out["kind"], out["apiVersion"] = "PartialObjectMetadataList", "meta.k8s.io/v1"
	}
	return out
}

// watch sends events until the caller goes.
func (f *Fake) watch(w http.ResponseWriter, r *http.Request, t target) {
	w.Header().Set("Content-Type", "application/json")
	send := func(kind string, object map[string]any) {
		_ = json.NewEncoder(w).Encode(map[string]any{"type": kind, "object": object})
	}
	after, err := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	f.mu.Lock()
	broken := f.broken
	if err != nil { // from now on, and what there is
		after = f.version
		for _, item := range f.list(r, t)["items"].([]any) {
			send("ADDED", item.(map[string]any))
		}
	}
	f.mu.Unlock()
	for r.Context().Err() == nil {
		f.mu.Lock()
		due, news, old, ended := f.events, f.news, after < f.oldest, f.broken != broken
		f.mu.Unlock()
		switch {
		case ended:
			return
		case old:
			send("ERROR", status(http.StatusGone, "Expired", "too old"))
			return
		}
		for _, e := range due {
			if e.version > after && e.folder == t.folder && selected(r, e.object) {
				send(e.kind, partial(r, e.object))
				after = e.version
			}
		}
		http.NewResponseController(w).Flush() //nolint:errcheck // the caller has gone, which the context says
		select {
		case <-r.Context().Done():
		case <-news:
		}
	}
}
