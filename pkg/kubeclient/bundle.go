package kubeclient

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metaapi "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
)

var configMaps = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}

// ApplyConfigMap sets one key of a ConfigMap by server-side apply, as a field
// manager, and makes the ConfigMap if there is none. The key is taken over from
// whoever has set it before; the other keys are left.
func (c *Client) ApplyConfigMap(ctx context.Context, namespace, name, key, value, manager string) error {
	ctx, cancel, p, err := c.call(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	_, err = p.dynamic.Resource(configMaps).Namespace(namespace).Apply(ctx, name, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": name, "namespace": namespace},
		"data": map[string]any{key: value},
	}}, metaapi.ApplyOptions{FieldManager: manager, Force: true})
	if err != nil {
		return fmt.Errorf("applying ConfigMap %s/%s (verbs patch and, if it is not there, create): %w", namespace, name, err)
	}
	return nil
}

// PatchConfigMap sets one key of a ConfigMap that is there.
func (c *Client) PatchConfigMap(ctx context.Context, namespace, name, key, value string) error {
	patch, err := json.Marshal(map[string]any{"data": map[string]string{key: value}})
	if err != nil {
		return fmt.Errorf("encoding the patch: %w", err)
	}
	ctx, cancel, p, err := c.call(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	_, err = p.meta.Resource(configMaps).Namespace(namespace).Patch(ctx, name, types.MergePatchType, patch, metaapi.PatchOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return fmt.Errorf("patching ConfigMap %s/%s, which has to be made first: %w", namespace, name, err)
	case err != nil:
		return fmt.Errorf("patching ConfigMap %s/%s (verb patch): %w", namespace, name, err)
	}
	return nil
}

// CAKind is a kind of object that has the authorities of a server which the API
// server calls.
type CAKind int

// Kinds.
const (
	MutatingWebhooks CAKind = iota
	ValidatingWebhooks
	APIServices
)

var caResources = map[CAKind]schema.GroupVersionResource{
	MutatingWebhooks:   {Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"},
	ValidatingWebhooks: {Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"},
	APIServices:        {Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"},
}

// SetCABundle gives the authorities, PEM, to every object of a kind with the
// label, such as spiffe.io/webhook=true. One that has them is left. It goes on
// after an object that fails, and returns all that went wrong.
func (c *Client) SetCABundle(ctx context.Context, kind CAKind, label string, pem []byte) error {
	p, err := c.open()
	if err != nil {
		return err
	}
	resource := caResources[kind]
	objects, _, err := labelled{ResourceInterface: p.meta.Resource(resource), label: label}.all(quiet(ctx))
	if err != nil {
		return fmt.Errorf("listing %s (verb list): %w", resource.Resource, err)
	}
	var problems []error
	for i := range objects {
		name := objects[i].Name
		err := retry.RetryOnConflict(retry.DefaultRetry, func() error { return c.setOne(ctx, kind, name, pem) })
		if err != nil && !apierrors.IsNotFound(err) {
			problems = append(problems, fmt.Errorf("setting the caBundle of %s %s (verbs get and patch): %w", resource.Resource, name, err))
		}
	}
	return errors.Join(problems...)
}

func (c *Client) setOne(ctx context.Context, kind CAKind, name string, pem []byte) error {
	ctx, cancel, p, err := c.call(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	of := p.dynamic.Resource(caResources[kind])
	object, err := of.Get(ctx, name, metaapi.GetOptions{})
	if err != nil {
		return err
	}
	patch := caPatch(kind, object, pem)
	if patch == nil {
		return nil
	}
	// Whoever changes the object meanwhile has it read again.
	patch["metadata"] = map[string]any{"resourceVersion": object.GetResourceVersion()}
	data, err := json.Marshal(patch)
	if err != nil {
		return fmt.Errorf("encoding the patch: %w", err)
	}
	how := types.StrategicMergePatchType // webhooks are merged by their names
	if kind == APIServices {
		how = types.MergePatchType
	}
	_, err = of.Patch(ctx, name, how, data, metaapi.PatchOptions{})
	return err
}

// caPatch is what has to change for an object to have the authorities; nil if
// nothing has to.
func caPatch(kind CAKind, object *unstructured.Unstructured, pem []byte) map[string]any {
	encoded := base64.StdEncoding.EncodeToString(pem)
	if kind == APIServices {
		if has(object.Object, pem, "spec", "caBundle") {
			return nil
		}
		return map[string]any{"spec": map[string]any{"caBundle": encoded}}
	}
	hooks, _, _ := unstructured.NestedSlice(object.Object, "webhooks")
	var changed []any
	for _, h := range hooks {
		hook, ok := h.(map[string]any)
		if !ok || has(hook, pem, "clientConfig", "caBundle") {
			continue
		}
		changed = append(changed, map[string]any{"name": hook["name"], "clientConfig": map[string]any{"caBundle": encoded}})
	}
	if changed == nil {
		return nil
	}
	return map[string]any{"webhooks": changed}
}

// has says whether a field has these authorities, in base64.
func has(object map[string]any, pem []byte, field ...string) bool {
	text, _, _ := unstructured.NestedString(object, field...)
	got, err := base64.StdEncoding.DecodeString(text)
	return err == nil && bytes.Equal(got, pem)
}

// WatchCA tells of every object of a kind with the label that is made or
// changed, until ctx ends or the watch breaks. changed returns at once.
func (c *Client) WatchCA(ctx context.Context, kind CAKind, label string, changed func()) error {
	return c.follow(ctx, caResources[kind], "", label, follower{
		listed:  func([]metaapi.PartialObjectMetadata) { changed() },
		changed: func(*metaapi.PartialObjectMetadata) { changed() },
	})
}
