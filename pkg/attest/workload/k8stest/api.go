package k8stest

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// API is an API server that has pods and namespaces. Its methods may be called
// concurrently.
type API struct {
	t      testing.TB
	server *httptest.Server
	// CAPath and TokenPath are files for its clients.
	CAPath, TokenPath string

	mu sync.Mutex
	// guarded by mu:

	revision  int
	objects   map[string]map[string]entry // by resource, then UID or name
	history   []change
	compacted int
	news      chan struct{} // closed at each change
	cut       chan struct{} // closed when watches are to end
	token     string
	deny      map[string]int // status by resource
	down      bool
	hang      bool
	dribble   bool
	goneHTTP  bool
	counts    map[string]int
}

type entry struct {
	node  string
	build func(revision int) object
	at    int
}

type change struct {
	resource, kind, node string
	revision             int
	object               object
	once                 bool // not for watches that begin later
}

// NewAPI starts one that ends with the test.
func NewAPI(t testing.TB) *API {
	t.Helper()
	a := &API{
		t: t, objects: map[string]map[string]entry{"pods": {}, "namespaces": {}}, revision: 100,
		news: make(chan struct{}), cut: make(chan struct{}), deny: map[string]int{}, counts: map[string]int{},
		TokenPath: filepath.Join(t.TempDir(), "token"),
	}
	a.RotateToken()
	var leaf tls.Certificate
	a.CAPath, leaf = authority(t)
	a.server = httptest.NewUnstartedServer(http.HandlerFunc(a.serve))
	a.server.EnableHTTP2 = true
	a.server.TLS = &tls.Config{Certificates: []tls.Certificate{leaf}, MinVersion: tls.VersionTLS12}
	a.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	a.server.StartTLS()
	t.Cleanup(func() {
		a.CutWatches()
		a.server.CloseClientConnections()
		a.server.Close()
	})
	return a
}

// URL is where it is.
func (a *API) URL() string { return a.server.URL }

// SetPod adds a pod or changes it.
func (a *API) SetPod(p Pod) { a.put("pods", p.UID, p.Node, p.object) }

// DeletePod deletes a pod.
func (a *API) DeletePod(uid string) { a.remove("pods", uid) }

// SetNamespace adds a namespace or changes it.
func (a *API) SetNamespace(name string, labels map[string]string) {
	a.put("namespaces", name, "", func(revision int) object {
		return object{
			"apiVersion": "v1", "kind": "Namespace", "spec": object{}, "status": object{"phase": "Active"},
			"metadata": object{"name": name, "uid": "uid-of-" + name, "resourceVersion": fmt.Sprint(revision), "labels": labels},
		}
	})
}

// DeleteNamespace deletes a namespace.
func (a *API) DeleteNamespace(name string) { a.remove("namespaces", name) }

func (a *API) put(resource, key, node string, build func(int) object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revision++
	kind := "ADDED"
	if _, ok := a.objects[resource][key]; ok {
		kind = "MODIFIED"
	}
	a.objects[resource][key] = entry{node: node, build: build, at: a.revision}
	a.changed(change{resource: resource, kind: kind, node: node, revision: a.revision, object: build(a.revision)})
}

func (a *API) remove(resource, key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e, ok := a.objects[resource][key]
	if !ok {
		a.t.Errorf("there is no %s %s to delete", resource, key)
		return
	}
	a.revision++
	delete(a.objects[resource], key)
	a.changed(change{resource: resource, kind: "DELETED", node: e.node, revision: a.revision, object: e.build(a.revision)})
}

// Bookmark tells all watches how far they are.
func (a *API) Bookmark() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revision++
	for resource := range a.objects {
		a.changed(change{resource: resource, kind: "BOOKMARK", revision: a.revision, object: object{
			"metadata": object{"resourceVersion": fmt.Sprint(a.revision)},
		}})
	}
}

// Send sends the watches of pods that there are an event as it is.
func (a *API) Send(kind string, o map[string]any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revision++
	a.changed(change{resource: "pods", kind: kind, revision: a.revision, object: o, once: true})
}

func (a *API) changed(c change) {
	a.history = append(a.history, c)
	a.tell()
}

func (a *API) tell() {
	close(a.news)
	a.news = make(chan struct{})
}

// Compact forgets what has happened: a watch from before this is answered with
// 410, in its stream or, with asHTTP, as its status.
func (a *API) Compact(asHTTP bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.compacted, a.history, a.goneHTTP = a.revision, nil, asHTTP
}

// CutWatches ends all watches as the API server does after their time.
func (a *API) CutWatches() {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.cut)
	a.cut = make(chan struct{})
}

// SetDown makes every connection break, or none any more.
func (a *API) SetDown(down bool) {
	a.mu.Lock()
	a.down = down
	a.mu.Unlock()
	if down {
		a.CutWatches()
		a.server.CloseClientConnections()
	}
}

// Deny answers requests for pods or namespaces with a status such as 403; 0
// allows them. Watches end.
func (a *API) Deny(resource string, status int) {
	a.mu.Lock()
	a.deny[resource] = status
	a.mu.Unlock()
	a.CutWatches()
}

// Hang lets requests wait until their client gives up.
func (a *API) Hang() { a.set(&a.hang) }

// Dribble sends a few bytes at a time from now on.
func (a *API) Dribble() { a.set(&a.dribble) }

func (a *API) set(flag *bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	*flag = true
}

// RotateToken writes another token to TokenPath and takes no older one.
func (a *API) RotateToken() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.counts["tokens"]++
	a.token = fmt.Sprintf("token-%d", a.counts["tokens"])
	write(a.t, a.TokenPath, a.token+"\n")
}

// Count is how many requests there were: "list pods", "watch namespaces"
// or "unauthorized".
func (a *API) Count(what string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.counts[what]
}

func (a *API) serve(w http.ResponseWriter, r *http.Request) {
	resource := strings.TrimPrefix(r.URL.Path, "/api/v1/")
	verb := "list"
	if r.URL.Query().Get("watch") != "" {
		verb = "watch"
	}
	a.mu.Lock()
	a.counts[verb+" "+resource]++
	down, hang, deny, token := a.down, a.hang, a.deny[resource], a.token
	_, known := a.objects[resource]
	authorized := r.Header.Get("Authorization") == "Bearer "+token
	if !authorized {
		a.counts["unauthorized"]++
	}
	a.mu.Unlock()
	switch {
	case down:
		panic(http.ErrAbortHandler)
	case hang:
		<-r.Context().Done()
	case !authorized:
		refuse(w, http.StatusUnauthorized, "Unauthorized")
	case deny != 0:
		refuse(w, deny, resource+` is forbidden: User "system:serviceaccount:identity:agent" cannot `+verb+` resource "`+resource+`"`)
	case !known:
		refuse(w, http.StatusNotFound, "the server could not find the requested resource")
	case verb == "list":
		a.list(w, r, resource)
	default:
		a.watch(w, r, resource)
	}
}

func refuse(w http.ResponseWriter, code int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(failure(code, message))
}

func failure(code int, message string) object {
	return object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
}

// nodeOf is the node that the field selector limits a request to.
func nodeOf(r *http.Request) string {
	node, _ := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "spec.nodeName=")
	return node
}

func (a *API) list(w http.ResponseWriter, r *http.Request, resource string) {
	node := nodeOf(r)
	a.mu.Lock()
	items := []object{}
	for _, e := range a.objects[resource] {
		if node == "" || e.node == node {
			items = append(items, e.build(e.at))
		}
	}
	revision, dribble := a.revision, a.dribble
	a.mu.Unlock()
	if least, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion")); least > revision {
		refuse(w, http.StatusGatewayTimeout, "Too large resource version")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	send(w, dribble, object{"kind": "List", "apiVersion": "v1", "metadata": object{"resourceVersion": fmt.Sprint(revision)}, "items": items})
}

func (a *API) watch(w http.ResponseWriter, r *http.Request, resource string) {
	from, err := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if err != nil {
		refuse(w, http.StatusBadRequest, "resourceVersion is not a number")
		return
	}
	node := nodeOf(r)
	a.mu.Lock()
	tooOld, asHTTP, cut, born := from < a.compacted, a.goneHTTP, a.cut, a.revision
	a.mu.Unlock()
	const message = "too old resource version"
	if tooOld && asHTTP {
		refuse(w, http.StatusGone, message)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	if tooOld {
		send(w, false, object{"type": "ERROR", "object": failure(http.StatusGone, message)})
		return
	}
	for {
		a.mu.Lock()
		news, dribble := a.news, a.dribble
		var due []change
		for _, c := range a.history {
			seen := c.revision <= from || c.once && c.revision <= born
			if !seen && c.resource == resource && (node == "" || c.node == "" || c.node == node) {
				due = append(due, c)
			}
		}
		from = max(from, a.revision)
		a.mu.Unlock()
		for _, c := range due {
			if !send(w, dribble, object{"type": c.kind, "object": c.object}) {
				return
			}
		}
		select {
		case <-news:
		case <-cut:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// send writes one value, and says whether somebody is still there.
func send(w http.ResponseWriter, dribble bool, o object) bool {
	text, err := json.Marshal(o)
	if err != nil {
		panic(err) // a mistake in a test
	}
	text = append(text, '\n')
	flush := http.NewResponseController(w).Flush
	for len(text) > 0 {
		n := len(text)
		if dribble {
			n = min(n, 7)
		}
		if _, err := w.Write(text[:n]); err != nil || flush() != nil {
			return false
		}
		text = text[n:]
	}
	return true
}
