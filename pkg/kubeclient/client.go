package kubeclient

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"
)

const (
	// callTimeout bounds one call that is not a watch.
	callTimeout = 10 * time.Second
	// callsPerSecond and callsBurst bound what is asked of one API server.
	callsPerSecond = 50
	callsBurst     = 100
)

// userAgent is how the API server's audit log knows the server.
const userAgent = "credence-server"

// Client is one cluster's API server. It may be used concurrently.
type Client struct {
	path string

	mu    sync.Mutex
	parts *parts    // nil before the first call; guarded by mu
	stamp fileStamp // of the file that parts are from; guarded by mu
}

// parts are the clients of client-go that are in use. The typed ones are not:
// each links the types of every API group, 20 MB of them.
type parts struct {
	meta    metadata.Interface
	dynamic dynamic.Interface
	raw     rest.Interface
}

// fileStamp tells whether a file is another one than before.
type fileStamp struct {
	size int64
	at   time.Time
}

// New returns a client for the cluster of a kubeconfig file or, without one, for
// the cluster that the process runs in. It reads nothing yet.
func New(kubeconfig string) *Client { return &Client{path: kubeconfig} }

// Check says what is wrong with a kubeconfig file, as it is now. Without one
// there is nothing to say: the file may be for another machine.
func Check(kubeconfig string) error {
	if kubeconfig == "" {
		return nil
	}
	_, err := load(kubeconfig)
	return err
}

// load reads a kubeconfig file, or what a pod is given.
func load(path string) (*rest.Config, error) {
	if path == "" {
		config, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("reading the pod's service account: %w; outside a cluster, name a kubeconfig file", err)
		}
		return config, nil
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("reading kubeconfig %s: %w", path, err)
	}
	return config, nil
}

// open returns the clients. A kubeconfig file that was replaced is read again;
// the token of a pod is followed by client-go.
func (c *Client) open() (*parts, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var stamp fileStamp
	if c.path != "" {
		info, err := os.Stat(c.path)
		if err != nil {
			return nil, fmt.Errorf("reading kubeconfig: %w", err)
		}
		stamp = fileStamp{size: info.Size(), at: info.ModTime()}
	}
	if c.parts != nil && c.stamp == stamp {
		return c.parts, nil
	}
	config, err := load(c.path)
	if err != nil {
		return nil, err
	}
	if c.parts, err = connect(config); err != nil {
		return nil, fmt.Errorf("making a Kubernetes client: %w", err)
	}
	c.stamp = stamp
	return c.parts, nil
}

// connect makes the clients, which share connections and a limit.
func connect(config *rest.Config) (*parts, error) {
	config.UserAgent = userAgent
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON // what every API server speaks
	config.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(callsPerSecond, callsBurst)
	config.WarningHandlerWithContext = rest.NoWarnings{}
	over, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	p := new(parts)
	if p.meta, err = metadata.NewForConfigAndClient(config, over); err != nil {
		return nil, err
	}
	if p.dynamic, err = dynamic.NewForConfigAndClient(config, over); err != nil {
		return nil, err
	}
	config.NegotiatedSerializer = serializer.NewCodecFactory(runtime.NewScheme()).WithoutConversion()
	p.raw, err = rest.UnversionedRESTClientForConfigAndClient(config, over)
	return p, err
}

// call opens the clients for one call, and bounds it.
func (c *Client) call(ctx context.Context) (context.Context, context.CancelFunc, *parts, error) {
	p, err := c.open()
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithTimeout(quiet(ctx), callTimeout)
	return ctx, cancel, p, nil
}

// quiet keeps client-go from writing to standard error: what went wrong is
// returned, and logged by whoever asked.
func quiet(ctx context.Context) context.Context { return klog.NewContext(ctx, logr.Discard()) }
