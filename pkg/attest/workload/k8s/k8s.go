package k8s

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/workload"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

// Options are what an Attestor gets beside its configuration. The zero value
// works.
type Options struct {
	// Needs says whether somebody could use a selector that is not known yet: an
	// entry with at least one that missing accepts, whose others of type k8s are
	// all in known. It is called often and returns quickly; nil: always.
	Needs func(known attest.Selectors, missing func(attest.Selector) bool) bool
	// Log defaults to nowhere.
	Log *slog.Logger
	// Metrics is where the attestor registers its metrics; nil: nowhere.
	Metrics prometheus.Registerer
}

// Attestor says in which pod and container a process runs.
type Attestor struct {
	cfg     Config
	opts    Options
	locator locator
	pods    *pods
	metrics *metrics

	watch    *contact // with the API server about pods; nil: there is no watch
	kubelet  *kubelet // nil: it is never asked
	contacts []*contact
	parts    []func(context.Context) error // of Run
}

var _ workload.Runner = (*Attestor)(nil)

// New returns an Attestor. It looks at the agent's own cgroup and starts
// nothing; without Run nothing is known of pods.
func New(cfg Config, o Options) (*Attestor, error) {
	if err := errors.Join(cfg.Validate(), cfg.Check()); err != nil {
		return nil, err
	}
	loc, err := newLocator()
	if err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Needs == nil {
		o.Needs = func(attest.Selectors, func(attest.Selector) bool) bool { return true }
	}
	if cfg.VerboseContainerLocatorLogs {
		loc.log = o.Log
	}
	a := &Attestor{
		cfg: cfg, opts: o, locator: loc, metrics: newMetrics(),
		pods: newPods(cfg.EnableNamespaceLabels, cfg.DisableContainerSelectors),
	}
	a.connect()
	if err := a.register(o.Metrics); err != nil {
		return nil, fmt.Errorf("registering the metrics of the attestor k8s: %w", err)
	}
	return a, nil
}

// connect makes what brings the pods. Check has seen to what can be missing.
func (a *Attestor) connect() {
	if e, ok := a.cfg.kubelet(); ok {
		a.kubelet = newKubelet(&kubelet{
			client: newClient(e), every: positive(a.cfg.PollRetryInterval, defaultPollInterval),
			apply: a.pods.replaceLoosely, log: a.opts.Log, metrics: a.metrics,
			inUse: func() bool { return a.asks() && a.pods.inUse() },
		})
		a.parts = append(a.parts, a.kubelet.Run)
	}
	if e, ok, _ := a.cfg.apiServer(); ok {
		a.watch = a.contact("pods", a.kubelet != nil)
		a.parts = append(a.parts, a.podWatcher(newClient(e)).Run)
	}
	if a.cfg.EnableNamespaceLabels {
		e, _ := a.cfg.namespaces()
		a.parts = append(a.parts, a.namespaceWatcher(newClient(e)).Run)
	}
}

func (a *Attestor) contact(what string, patient bool) *contact {
	c := &contact{what: what, patient: patient, log: a.opts.Log, changed: a.pods.wake}
	a.contacts = append(a.contacts, c)
	return c
}

func (a *Attestor) podWatcher(c *client) *watcher[podObject] {
	node := a.cfg.nodeName()
	return &watcher[podObject]{
		client: c, contact: a.watch, log: a.opts.Log, metrics: a.metrics,
		resource: resource[podObject]{
			what: "pods", path: "/api/v1/pods", query: url.Values{"fieldSelector": {"spec.nodeName=" + node}},
			accept: acceptJSON, each: acceptJSON,
			meta: func(o *podObject) *metaObject { return &o.Metadata },
			replace: func(all []podObject) {
				list := make([]*pod, 0, len(all))
				for i := range all {
					if all[i].Spec.NodeName == node {
						list = append(list, newPod(&all[i]))
					}
				}
				a.pods.replace(list)
			},
			set: func(o *podObject) {
				if o.Spec.NodeName == node {
					a.pods.set(newPod(o))
				}
			},
			remove: func(o *podObject) { a.pods.remove(o.Metadata.UID) },
		},
	}
}

func (a *Attestor) namespaceWatcher(c *client) *watcher[namespaceObject] {
	return &watcher[namespaceObject]{
		client: c, contact: a.contact("namespaces", false), log: a.opts.Log, metrics: a.metrics,
		resource: resource[namespaceObject]{
			what: "namespaces", path: "/api/v1/namespaces", accept: acceptMetadatas, each: acceptMetadata,
			meta:    func(o *namespaceObject) *metaObject { return &o.Metadata },
			replace: a.pods.replaceNamespaces,
			set:     a.pods.setNamespace,
			remove:  func(o *namespaceObject) { a.pods.removeNamespace(o.Metadata.Name) },
		},
	}
}

// Name is "k8s".
func (*Attestor) Name() string { return Name }

// Run follows what is known of pods until ctx ends; it returns nil then.
func (a *Attestor) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, part := range a.parts {
		g.Go(func() error { return part(ctx) })
	}
	return g.Wait()
}

// Attest returns the selectors of the pod and the container that the process
// runs in; none for a process outside of all pods. It waits for a pod that is
// not known yet, and for the status of a container that has just started when
// somebody needs what is in it, until ctx ends; of the latter it then returns
// what there is. The answer is invalidated when it would be another one now. It
// must not be changed.
func (a *Attestor) Attest(ctx context.Context, p workload.Process) (attest.Selectors, <-chan struct{}, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	at, err := a.locator.find(ctx, p)
	if err != nil {
		return nil, nil, fmt.Errorf("finding the container: %w", err)
	}
	if at == (place{}) {
		return nil, nil, nil
	}
	s := search{Attestor: a, at: at}
	found, err := s.run(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("container %s: %w", at.container[:12], err)
	}
	return found.selectors, found.changed, nil
}

// asks says whether what is known comes from the kubelet.
func (a *Attestor) asks() bool {
	if a.kubelet == nil || a.watch == nil {
		return a.kubelet != nil
	}
	s := a.watch.state()
	return s.err != nil && (denied(s.err) || !s.ever)
}

// asksToo says whether the kubelet is asked for what is not known: it is the
// source, or the API server cannot be followed at the moment.
func (a *Attestor) asksToo() bool {
	return a.kubelet != nil && (a.watch == nil || a.watch.state().err != nil)
}

func positive[T int | time.Duration](given, otherwise T) T { return cmp.Or(max(given, 0), otherwise) }
