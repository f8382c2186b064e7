package k8spsat

import (
	"context"
	"errors"
)

// Sentinel errors of a Cluster, tested with errors.Is.
var (
	// ErrNotFound is wrapped when the API server has no such object.
	ErrNotFound = errors.New("not found")
	// ErrForbidden is wrapped when the server may not ask this; the error says
	// which permission is missing.
	ErrForbidden = errors.New("forbidden")
)

// Cluster is the API server of one cluster.
//
// It may be used concurrently. Each call is bounded in time and ends with ctx;
// what the objects have is as new as the answer. No error repeats a token.
type Cluster interface {
	// Review asks for a TokenReview of the token for the audiences; none are
	// the API server's own. A token that is no good is no error.
	Review(ctx context.Context, token string, audiences []string) (Review, error)
	// Pod looks a pod up by name. It returns ErrNotFound and ErrForbidden, as
	// the next two do.
	Pod(ctx context.Context, namespace, name string) (Pod, error)
	Node(ctx context.Context, name string) (Node, error)
	// ServiceAccount returns the UID of a service account.
	ServiceAccount(ctx context.Context, namespace, name string) (uid string, err error)
	// KeySet is the JSON Web Key Set that the API server publishes for its
	// service-account tokens. It returns ErrForbidden.
	KeySet(ctx context.Context) ([]byte, error)
	// WatchNodes tells which nodes there are, and of each that is deleted from
	// then on, until ctx ends or the watch breaks; it is then called again, and
	// tells all anew. Both functions are called by one goroutine and return at
	// once. It returns ErrForbidden.
	WatchNodes(ctx context.Context, there func(uids map[string]bool), gone func(uid string)) error
	// WatchPods is the same for the pods of a namespace.
	WatchPods(ctx context.Context, namespace string, there func(uids map[string]bool), gone func(uid string)) error
}

// Review is the status of a TokenReview.
type Review struct {
	// Authenticated says whether the token is good, and Error why it is not.
	Authenticated bool
	Error         string
	// Username and UID are the service account's.
	Username string
	UID      string
	// Extra has the pod's name and UID, and those of its node, in keys that
	// begin with authentication.kubernetes.io/.
	Extra map[string][]string
	// Audiences are those of the request that the token is for.
	Audiences []string
}

// Pod is what is used of a pod.
type Pod struct {
	UID            string
	ServiceAccount string
	// NodeName is empty while the pod is on no node.
	NodeName string
	// HostIP is the node's address; empty while the kubelet has not said it.
	HostIP string
	Labels map[string]string
	// Ended says that nothing of the pod runs any more, for good.
	Ended bool
}

// Node is what is used of a node.
type Node struct {
	UID    string
	Labels map[string]string
}
