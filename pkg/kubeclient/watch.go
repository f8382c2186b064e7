package kubeclient

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metaapi "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	watchtools "k8s.io/client-go/tools/watch"
)

// pageSize is how many objects one answer to a list has.
const pageSize = 500

// follower is told what follow sees, by one goroutine. Functions may be nil.
type follower struct {
	// listed has all that there are, at the begin and whenever the API server
	// has forgotten what came since.
	listed  func([]metaapi.PartialObjectMetadata)
	changed func(*metaapi.PartialObjectMetadata) // or added
	deleted func(*metaapi.PartialObjectMetadata)
}

// follow lists the objects of a resource, in one namespace or all of them if it
// is empty, that have a label, and watches them from there, until ctx ends or it
// fails. Of the objects only the metadata is read. A watch that the API server
// ends is taken up where it was.
func (c *Client) follow(ctx context.Context, resource schema.GroupVersionResource, namespace, label string, f follower) error {
	p, err := c.open()
	if err != nil {
		return err
	}
	ctx = quiet(ctx)
	of := labelled{ResourceInterface: p.meta.Resource(resource).Namespace(namespace), label: label}
	for {
		objects, version, err := of.all(ctx)
		if err != nil {
			return fmt.Errorf("listing %s: %w", resource.Resource, err)
		}
		if f.listed != nil {
			f.listed(objects)
		}
		err = of.watchFrom(ctx, version, f)
		if apierrors.IsGone(err) || apierrors.IsResourceExpired(err) {
			continue // What came since is forgotten: list again.
		}
		return fmt.Errorf("watching %s: %w", resource.Resource, err)
	}
}

// labelled is the objects of a resource that have a label; all if it is empty.
type labelled struct {
	metadata.ResourceInterface

	label string
}

// all lists the objects, and the version of the list.
func (l labelled) all(ctx context.Context) (objects []metaapi.PartialObjectMetadata, version string, err error) {
	options := metaapi.ListOptions{LabelSelector: l.label, Limit: pageSize}
	for {
		page, err := l.page(ctx, options)
		if err != nil {
			return nil, "", err
		}
		objects, version = append(objects, page.Items...), page.ResourceVersion
		if options.Continue = page.Continue; options.Continue == "" {
			return objects, version, nil
		}
	}
}

func (l labelled) page(ctx context.Context, options metaapi.ListOptions) (*metaapi.PartialObjectMetadataList, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return l.List(ctx, options)
}

// WatchWithContext is cache.WatcherWithContext.
func (l labelled) WatchWithContext(ctx context.Context, options metaapi.ListOptions) (watch.Interface, error) {
	options.LabelSelector = l.label
	return l.Watch(ctx, options)
}

var errWatchEnded = errors.New("the watch has ended")

// watchFrom hands on what comes after a version of the list, until ctx ends or
// the API server refuses to go on.
func (l labelled) watchFrom(ctx context.Context, version string, f follower) error {
	w, err := watchtools.NewRetryWatcherWithContext(ctx, version, l)
	if err != nil {
		return err
	}
	defer func() { <-w.Done() }()
	defer w.Stop()
	for event := range w.ResultChan() {
		if event.Type == watch.Error {
			return apierrors.FromObject(event.Object)
		}
		object, ok := event.Object.(*metaapi.PartialObjectMetadata)
		switch {
		case !ok: // RetryWatcher hands on nothing else
		case event.Type == watch.Deleted && f.deleted != nil:
			f.deleted(object)
		case event.Type != watch.Deleted && f.changed != nil:
			f.changed(object)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errWatchEnded
}
