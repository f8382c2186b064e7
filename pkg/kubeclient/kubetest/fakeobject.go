package kubetest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// selected says whether an object has what the query asks for: one label, or one
// name.
func selected(r *http.Request, object map[string]any) bool {
	query := r.URL.Query()
	if name, ok := strings.CutPrefix(query.Get("fieldSelector"), "metadata.name="); ok && field(object, "metadata", "name") != name {
		return false
	}
	key, value, ok := strings.Cut(query.Get("labelSelector"), "=")
	return !ok || field(object, "metadata", "labels", key) == value
}

// asksPartial says whether the caller wants the metadata alone.
func asksPartial(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata")
}

func partial(r *http.Request, object map[string]any) map[string]any {
	if !asksPartial(r) {
		return object
	}
	return map[string]any{"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]}
}

func reply(w http.ResponseWriter, object map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(object)
}

func status(code int, reason, message string) map[string]any {
	return map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}
}

func refuse(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(status(code, reason, message))
}

// field is the text at a path of an object; empty if there is none.
func field(object map[string]any, path ...string) string {
	for _, key := range path[:len(path)-1] {
		object, _ = object[key].(map[string]any)
	}
	text, _ := object[path[len(path)-1]].(string)
	return text
}

// conflicts says whether the caller has an older version in mind.
func conflicts(old, sent map[string]any) bool {
	version := field(sent, "metadata", "resourceVersion")
	return version != "" && version != field(old, "metadata", "resourceVersion")
}

// clone copies an object.
func clone(object map[string]any) map[string]any {
	data, err := json.Marshal(object)
	if err != nil {
		panic(fmt.Sprintf("an object that was JSON: %v", err))
	}
	var out map[string]any
	if err := json.Unmarshal(data, &out); err != nil {
		panic(fmt.Sprintf("JSON just written: %v", err))
	}
	return out
}

// merge puts a patch over an object: JSON Merge Patch (RFC 7396), and lists of
// named objects name by name, as a strategic merge does with webhooks.
func merge(old, patch map[string]any) map[string]any {
	out := maps.Clone(old)
	if out == nil {
		out = make(map[string]any)
	}
	for key, value := range patch {
		switch value := value.(type) {
		case nil:
			delete(out, key)
		case map[string]any:
			below, _ := out[key].(map[string]any)
			out[key] = merge(below, value)
		case []any:
			before, _ := out[key].([]any)
			out[key] = mergeList(before, value)
		default:
			out[key] = value
		}
	}
	return out
}

func mergeList(old, patch []any) []any {
	out := slices.Clone(old)
	for _, p := range patch {
		item, ok := p.(map[string]any)
		if !ok || item["name"] == nil {
			return patch
		}
		i := slices.IndexFunc(out, func(o any) bool { return o.(map[string]any)["name"] == item["name"] })
		if i < 0 {
			out = append(out, item)
			continue
		}
		out[i] = merge(out[i].(map[string]any), item)
	}
	return out
}
