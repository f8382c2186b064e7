package kubeclient

import (
	"context"
	"fmt"

	authenticationapi "k8s.io/api/authentication/v1"
	coreapi "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metaapi "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/credence-id/credence/pkg/attest/node/k8spsat"
)

var _ k8spsat.Cluster = (*Client)(nil)

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

// Review is k8spsat.Cluster.
func (c *Client) Review(ctx context.Context, token string, audiences []string) (k8spsat.Review, error) {
	ctx, cancel, p, err := c.call(ctx)
	if err != nil {
		return k8spsat.Review{}, err
	}
	defer cancel()
	review, err := p.auth.TokenReviews().Create(ctx, &authenticationapi.TokenReview{
		Spec: authenticationapi.TokenReviewSpec{Token: token, Audiences: audiences},
	}, metaapi.CreateOptions{})
	if err != nil {
		return k8spsat.Review{}, known(err)
	}
	status := &review.Status
	out := k8spsat.Review{
		Authenticated: status.Authenticated, Error: status.Error,
		Username: status.User.Username, UID: status.User.UID, Audiences: status.Audiences,
		Extra: make(map[string][]string, len(status.User.Extra)),
	}
	for key, values := range status.User.Extra {
		out.Extra[key] = values
	}
	return out, nil
}

// Pod is k8spsat.Cluster.
func (c *Client) Pod(ctx context.Context, namespace, name string) (k8spsat.Pod, error) {
	ctx, cancel, p, err := c.call(ctx)
	if err != nil {
		return k8spsat.Pod{}, err
	}
	defer cancel()
	pod, err := p.core.Pods(namespace).Get(ctx, name, metaapi.GetOptions{})
	if err != nil {
		return k8spsat.Pod{}, known(err)
	}
	return k8spsat.Pod{
		UID: string(pod.UID), ServiceAccount: pod.Spec.ServiceAccountName, NodeName: pod.Spec.NodeName,
		HostIP: pod.Status.HostIP, Labels: pod.Labels,
		Ended: pod.Status.Phase == coreapi.PodSucceeded || pod.Status.Phase == coreapi.PodFailed,
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
	account, err := p.core.ServiceAccounts(namespace).Get(ctx, name, metaapi.GetOptions{})
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
	data, err := p.core.RESTClient().Get().AbsPath(keySetPath).SetHeader("Accept", "application/jwk-set+json").DoRaw(ctx)
	if err != nil {
		return nil, known(err)
	}
	return data, nil
}

// WatchNodes is k8spsat.Cluster.
func (c *Client) WatchNodes(ctx context.Context, there func(uids map[string]bool), gone func(uid string)) error {
	return known(c.follow(ctx, nodes, "", follower{
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
