package k8s

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/credence-id/credence/pkg/attest"
)

// mirrorAnnotation is on the object by which the API server shows a pod that the
// kubelet runs from a file: its value is the UID the kubelet knows the pod by.
const mirrorAnnotation = "kubernetes.io/config.mirror"

// The parts of Kubernetes' objects that count here (core/v1).
type (
	metaObject struct {
		Name            string            `json:"name"`
		Namespace       string            `json:"namespace"`
		UID             string            `json:"uid"`
		ResourceVersion string            `json:"resourceVersion"`
		Labels          map[string]string `json:"labels"`
		Annotations     map[string]string `json:"annotations"`
		OwnerReferences []struct {
			Kind string `json:"kind"`
			Name string `json:"name"`
			UID  string `json:"uid"`
		} `json:"ownerReferences"`
	}
	podObject struct {
		Metadata metaObject `json:"metadata"`
		Spec     struct {
			NodeName            string            `json:"nodeName"`
			ServiceAccountName  string            `json:"serviceAccountName"`
			Containers          []containerObject `json:"containers"`
			InitContainers      []containerObject `json:"initContainers"`
			EphemeralContainers []containerObject `json:"ephemeralContainers"`
		} `json:"spec"`
		Status struct {
			ContainerStatuses          []containerStatus `json:"containerStatuses"`
			InitContainerStatuses      []containerStatus `json:"initContainerStatuses"`
			EphemeralContainerStatuses []containerStatus `json:"ephemeralContainerStatuses"`
		} `json:"status"`
	}
	containerObject struct {
		Name          string `json:"name"`
		RestartPolicy string `json:"restartPolicy"`
	}
	containerStatus struct {
		Name        string `json:"name"`
		Image       string `json:"image"`
		ImageID     string `json:"imageID"`
		ContainerID string `json:"containerID"`
		State       struct {
			Running    *struct{} `json:"running"`
			Terminated *struct {
				ExitCode int32 `json:"exitCode"`
			} `json:"terminated"`
		} `json:"state"`
	}
	namespaceObject struct {
		Metadata metaObject `json:"metadata"`
	}
)

// pod is what is remembered of one.
type pod struct {
	uid       string
	mirrorOf  string // the UID in the pod's cgroup, for a pod from a file
	namespace string
	// facts are the selectors that all its containers have, but for labels of
	// the namespace.
	facts      []attest.Selector
	containers []container
	// starting says that a container may run whose ID is not in the status yet.
	starting bool

	answers map[string]*answer // by container ID, see pods
	absent  time.Time          // since when the kubelet does not name it; zero: it does
}

// container is one that the status names.
type container struct {
	id    string
	facts []attest.Selector
}

// newPod keeps what counts of an object.
func newPod(o *podObject) *pod {
	m := &o.Metadata
	p := &pod{uid: m.UID, mirrorOf: m.Annotations[mirrorAnnotation], namespace: m.Namespace}
	uid := cmp.Or(p.mirrorOf, p.uid)
	p.facts = []attest.Selector{
		fact("sa", o.Spec.ServiceAccountName),
		fact("ns", m.Namespace),
		fact("node-name", o.Spec.NodeName),
		fact("pod-uid", uid),
		fact("pod-name", m.Name),
		// As the status will have it, from the beginning.
		fact("pod-image-count", strconv.Itoa(len(o.Spec.Containers))),
		fact("pod-init-image-count", strconv.Itoa(len(o.Spec.InitContainers))),
	}
	for k, v := range m.Labels {
		p.facts = append(p.facts, fact("pod-label", k, v))
	}
	for _, owner := range m.OwnerReferences {
		p.facts = append(p.facts, fact("pod-owner", owner.Kind, owner.Name), fact("pod-owner-uid", owner.Kind, owner.UID))
	}
	s := &o.Status
	p.facts = append(p.facts, images("pod-image", s.ContainerStatuses...)...)
	p.facts = append(p.facts, images("pod-init-image", s.InitContainerStatuses...)...)
	for _, all := range [...][]containerStatus{s.ContainerStatuses, s.InitContainerStatuses, s.EphemeralContainerStatuses} {
		for _, c := range all {
			if id := bareID(c.ContainerID); id != "" {
				p.containers = append(p.containers, container{
					id:    id,
					facts: append([]attest.Selector{fact("container-name", c.Name)}, images("container-image", c)...),
				})
			}
		}
	}
	p.starting = starting(o.Spec.Containers, s.ContainerStatuses, true) ||
		starting(o.Spec.InitContainers, s.InitContainerStatuses, false) ||
		starting(o.Spec.EphemeralContainers, s.EphemeralContainerStatuses, false)
	return p
}

// starting says whether one of the containers may be running under an ID that
// its status does not have: it has none yet, or the container it tells of has
// ended and can have been started again.
func starting(spec []containerObject, status []containerStatus, always bool) bool {
	for _, c := range spec {
		i := slices.IndexFunc(status, func(s containerStatus) bool { return s.Name == c.Name })
		switch {
		case i < 0:
			return true
		case status[i].State.Running != nil && status[i].ContainerID != "":
		case status[i].State.Terminated == nil, always, c.RestartPolicy == "Always", status[i].State.Terminated.ExitCode != 0:
			return true
		}
	}
	return false
}

// images are the names by which the status knows images: the one that the
// runtime reports, and the one with its digest.
func images(kind string, status ...containerStatus) []attest.Selector {
	var facts []attest.Selector
	for _, c := range status {
		for _, name := range [...]string{c.Image, c.ImageID} {
			if name != "" {
				facts = append(facts, fact(kind, name))
			}
		}
	}
	return facts
}

// bareID is the ID in runtime://ID.
func bareID(id string) string {
	_, bare, _ := strings.Cut(id, "://")
	return bare
}

func fact(kind string, values ...string) attest.Selector {
	return attest.Selector{Type: Name, Value: kind + ":" + strings.Join(values, ":")}
}

// late says whether a container's status brings selectors like s: its own, and
// those of images, which are in the same status.
func late(s attest.Selector) bool {
	kind, _, _ := strings.Cut(s.Value, ":")
	switch kind {
	case "container-name", "container-image", "pod-image", "pod-init-image":
		return s.Type == Name
	}
	return false
}
