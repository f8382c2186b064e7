package k8stest

import (
	"fmt"
	"strings"
)

// Pod is a pod as a test writes it.
type Pod struct {
	Name, Namespace, UID, Node, ServiceAccount string
	Labels, Annotations                        map[string]string
	Owners                                     []Owner
	Containers, Init, Ephemeral                []Container
}

// Owner is one of a pod's ownerReferences.
type Owner struct{ Kind, Name, UID string }

// Container is one of a pod's, with its status.
type Container struct {
	Name, Image string
	// ID is the runtime's; empty: it waits to be started.
	ID string
	// ImageID is what the status has once there is an ID.
	ImageID string
	// RestartPolicy is "Always" for an init container that is a sidecar.
	RestartPolicy string
	// Ended says that the container has ended, with ExitCode.
	Ended    bool
	ExitCode int
	// NoStatus: the kubelet has not written a status yet.
	NoStatus bool
}

type object = map[string]any

// object is the pod as Kubernetes writes it (core/v1).
func (p Pod) object(revision int) object {
	spec := object{"nodeName": p.Node, "serviceAccountName": p.ServiceAccount}
	status := object{"phase": "Running"}
	for kind, list := range map[string][]Container{"containers": p.Containers, "initContainers": p.Init, "ephemeralContainers": p.Ephemeral} {
		var specs, statuses []object
		for _, c := range list {
			specs = append(specs, object{"name": c.Name, "image": c.Image, "restartPolicy": c.RestartPolicy, "resources": object{}})
			if !c.NoStatus {
				statuses = append(statuses, c.status())
			}
		}
		if specs != nil {
			spec[kind] = specs
		}
		if statuses != nil {
			status[strings.TrimSuffix(kind, "s")+"Statuses"] = statuses
		}
	}
	var owners []object
	for _, o := range p.Owners {
		owners = append(owners, object{"apiVersion": "apps/v1", "kind": o.Kind, "name": o.Name, "uid": o.UID, "controller": true})
	}
	return object{
		"apiVersion": "v1", "kind": "Pod", "spec": spec, "status": status,
		"metadata": object{
			"name": p.Name, "namespace": p.Namespace, "uid": p.UID, "resourceVersion": fmt.Sprint(revision),
			"labels": p.Labels, "annotations": p.Annotations, "ownerReferences": owners,
			"managedFields": []object{{"manager": "kubelet", "fieldsV1": object{"f:status": object{}}}},
		},
	}
}

func (c Container) status() object {
	s := object{"name": c.Name, "image": c.Image, "imageID": "", "ready": false, "restartCount": 0}
	switch {
	case c.Ended:
		s["state"] = object{"terminated": object{"exitCode": c.ExitCode, "containerID": "containerd://" + c.ID}}
	case c.ID == "":
		s["state"] = object{"waiting": object{"reason": "ContainerCreating"}}
		return s
	default:
		s["state"] = object{"running": object{"startedAt": "2026-01-01T00:00:00Z"}}
	}
	s["containerID"], s["imageID"] = "containerd://"+c.ID, c.ImageID
	return s
}
