package kubeclient

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metaapi "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/credence-id/credence/pkg/attest/node/k8spsat"
)

var _ k8spsat.Cluster = (*Client)(nil)

// Resources that are asked for.
var (
	nodes           = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	pods            = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	serviceAccounts = schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}
	tokenReviews    = schema.GroupVersionResource{Group: "authentication.k8s.io", Version: "v1", Resource: "tokenreviews"}
)

// keySetPath is where API servers publish the keys of service-account tokens.
const keySetPath = "/openid/v1/jwks"

// known gives errors of the API server the sentinels of k8spsat. The text says
// what may not be done: verb, resource and namespace.
func known(err error) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w: %w", k8spsat.ErrNotFound, err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w: %w", k8spsat.ErrForbidden, err)
	}
	return err
}

// tokenReview is what is used of one.
type tokenReview struct {
	Status struct {
		Authenticated bool   `json:"authenticated"`
		Error         string `json:"error"`
		User          struct {
			Username string              `json:"username"`
			UID      string              `json:"uid"`
			Extra    map[string][]string `json:"extra"`
		} `json:"user"`
		Audiences []string `json:"audiences"`
	} `json:"status"`
}

// Review is k8spsat.Cluster.
func (c *Client) Review(ctx context.Context, token string, audiences []string) (k8spsat.Review, error) {
	ctx, cancel, p, err := c.call(ctx)
	if err != nil {
		return k8spsat.Review{}, err
	}
	defer cancel()
	spec := map[string]any{"token": token}
	if len(audiences) > 0 {
		list := make([]any, 0, len(audiences))
		for _, a := range audiences {
			list = append(list, a)
		}
		spec["audiences"] = list
	}
	made, err := p.dynamic.Resource(tokenReviews).Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": tokenReviews.GroupVersion().String(), "kind": "TokenReview", "spec": spec,
	}}, metaapi.CreateOptions{})
	if err != nil {
		return k8spsat.Review{}, known(err)
	}
	var review tokenReview
	if err := into(made, &review); err != nil {
		return k8spsat.Review{}, err
	}
	s := &review.Status
	return k8spsat.Review{
		Authenticated: s.Authenticated, Error: s.Error,
		Username: s.User.Username, UID: s.User.UID, Extra: s.User.Extra, Audiences: s.Audiences,
	}, nil
}

// into reads an object into a struct.
func into(object *unstructured.Unstructured, to any) error {
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, to); err != nil {
		return fmt.Errorf("reading the API server's answer: it is no %s", object.GetKind())
	}
	return nil
}

// pod is what is used of one.
type pod struct {
	Metadata struct {
		UID    string            `json:"uid"`
		Labels map[string]string `json:"labels"`
	} `json:"metadata"`
	Spec struct {
		NodeName           string `json:"nodeName"`
		ServiceAccountName string `json:"serviceAccountName"`
	} `json:"spec"`
	Status struct {
		HostIP string `json:"hostIP"`
		Phase  string `json:"phase"`
	} `json:"status"`
}

// Pod is k8spsat.Cluster.
func (c *Client) Pod(ctx context.Context, namespace, name string) (k8spsat.Pod, error) {
	ctx, cancel, p, err := c.call(ctx)
	if err != nil {
		return k8spsat.Pod{}, err
	}
	defer cancel()
	got, err := p.dynamic.Resource(pods).Namespace(namespace).Get(ctx, name, metaapi.GetOptions{})
	if err != nil {
		return k8spsat.Pod{}, known(err)
	}
	var found pod
	if err := into(got, &found); err != nil {
		return k8spsat.Pod{}, err
	}
	return k8spsat.Pod{
		UID: found.Metadata.UID, ServiceAccount: found.Spec.ServiceAccountName, NodeName: found.Spec.NodeName,
		HostIP: found.Status.HostIP, Labels: found.Metadata.Labels,
		Ended: found.Status.Phase == "Succeeded" || found.Status.Phase == "Failed",
	}, nil
}

// Node is k8spsat.Cluster.
func (c *Client) Node(ctx context.Context, name string) (k8spsat.Node, error) {
	ctx, cancel, p, err := c.call(ctx)
	if err != nil {
		return k8spsat.Node{}, err
	}
	defer cancel()
	node, err := p.meta.Resource(nodes).Get(ctx, name, metaapi.GetOptions{})
	if err != nil {
		return k8spsat.Node{}, known(err)
	}
	return k8spsat.Node{UID: string(node.UID), Labels: node.Labels}, nil
}

// ServiceAccount is k8spsat.Cluster.
func (c *Client) ServiceAccount(ctx context.Context, namespace, name string) (uid string, err error) {
	ctx, cancel, p, err := c.call(ctx)
	if err != nil {
		return "", err
	}
	defer cancel()
	account, err := p.meta.Resource(serviceAccounts).Namespace(namespace).Get(ctx, name, metaapi.GetOptions{})
	if err != nil {
		return "", known(err)
	}
	return string(account.UID), nil
}

// KeySet is k8spsat.Cluster.
func (c *Client) KeySet(ctx context.Context) ([]byte, error) {
	ctx, cancel, p, err := c.call(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	data, err := p.raw.Get().AbsPath(keySetPath).SetHeader("Accept", "application/jwk-set+json").DoRaw(ctx)
	if err != nil {
		return nil, known(err)
	}
	return data, nil
}

// WatchNodes is k8spsat.Cluster.
func (c *Client) WatchNodes(ctx context.Context, there func(uids map[string]bool), gone func(uid string)) error {
	return c.watchUIDs(ctx, nodes, "", there, gone)
}

// WatchPods is k8spsat.Cluster.
func (c *Client) WatchPods(ctx context.Context, namespace string, there func(uids map[string]bool), gone func(uid string)) error {
	return c.watchUIDs(ctx, pods, namespace, there, gone)
}

func (c *Client) watchUIDs(ctx context.Context, resource schema.GroupVersionResource, namespace string, there func(uids map[string]bool), gone func(uid string)) error {
	return known(c.follow(ctx, resource, namespace, "", follower{
		listed: func(objects []metaapi.PartialObjectMetadata) {
			uids := make(map[string]bool, len(objects))
			for i := range objects {
				uids[string(objects[i].UID)] = true
			}
			there(uids)
		},
		deleted: func(object *metaapi.PartialObjectMetadata) { gone(string(object.UID)) },
	}))
}
