package csi

import (
	"path/filepath"
	"strings"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
)

const (
	// maxVolumeID is the specification's limit of a string in bytes.
	maxVolumeID = 128
	// maxTarget is the longest path in bytes (PATH_MAX).
	maxTarget = 4096
)

// Keys that kubelet adds to the volume context of drivers with podInfoOnMount.
const (
	ephemeralKey    = "csi.storage.k8s.io/ephemeral"
	podNameKey      = "csi.storage.k8s.io/pod.name"
	podNamespaceKey = "csi.storage.k8s.io/pod.namespace"
	podUIDKey       = "csi.storage.k8s.io/pod.uid"
)

// Names in the path of a target, which are kubelet's.
const (
	podsDir    = "pods"
	volumesDir = "volumes"
	pluginDir  = "kubernetes.io~csi"
	targetDir  = "mount"
)

// target is a place to mount at, in the only form that kubelet gives the volumes
// of CSI drivers: POD_UID/volumes/kubernetes.io~csi/NAME/mount in its directory
// of pods.
type target struct {
	path string
	uid  string
	name string
}

// parents are the directories between the directory of pods and the target.
func (t target) parents() []string { return []string{t.uid, volumesDir, pluginDir, t.name} }

// parseTarget refuses every path that is not a target's. It does not look at the
// file system, where what is a directory in the path may be something else.
func parseTarget(kubeletDir, path string) (target, error) {
	switch {
	case path == "":
		return target{}, invalid("target_path is required")
	case len(path) > maxTarget:
		return target{}, invalid("target_path has %d bytes, at most %d are allowed", len(path), maxTarget)
	case strings.ContainsRune(path, 0) || !filepath.IsAbs(path) || filepath.Clean(path) != path:
		return target{}, invalid("target_path %q must be absolute, without empty, . and .. elements", path)
	}
	pods := filepath.Join(kubeletDir, podsDir)
	t := target{path: path}
	parts := strings.Split(strings.TrimPrefix(path, strings.TrimSuffix(pods, "/")+"/"), "/")
	if !strings.HasPrefix(path, pods+"/") || len(parts) != 5 ||
		parts[1] != volumesDir || parts[2] != pluginDir || parts[4] != targetDir {
		return target{}, invalid("target_path %q is not %s/<pod UID>/%s/%s/<volume>/%s; set agent.csi.kubelet_dir to kubelet's --root-dir",
			path, pods, volumesDir, pluginDir, targetDir)
	}
	t.uid, t.name = parts[0], parts[3]
	return t, nil
}

// publication is a request to publish that has been checked.
type publication struct {
	target         target
	volume         string
	pod, namespace string // for the log; may be empty
}

// parsePublish refuses every request that is not for a read-only ephemeral
// volume. What it says is read by whoever wrote the pod.
func parsePublish(kubeletDir string, req *spec.NodePublishVolumeRequest) (*publication, error) {
	if err := checkVolumeID(req.GetVolumeId()); err != nil {
		return nil, err
	}
	t, err := parseTarget(kubeletDir, req.GetTargetPath())
	if err != nil {
		return nil, err
	}
	if err := checkCapability(req.GetVolumeCapability()); err != nil {
		return nil, err
	}
	attributes := req.GetVolumeContext()
	switch {
	case attributes[ephemeralKey] != "true":
		return nil, invalid("volume_context: %s is not \"true\": only ephemeral inline volumes are supported; use spec.volumes[].csi in the pod instead of a PersistentVolume, and podInfoOnMount: true in the CSIDriver object", ephemeralKey)
	case !req.GetReadonly():
		return nil, invalid("readonly must be set: pods cannot write to the Workload API's directory; set spec.volumes[].csi.readOnly: true in the pod")
	}
	return &publication{target: t, volume: req.GetVolumeId(), pod: attributes[podNameKey], namespace: attributes[podNamespaceKey]}, nil
}

// parseUnpublish refuses requests that do not name a target.
func parseUnpublish(kubeletDir string, req *spec.NodeUnpublishVolumeRequest) (target, error) {
	if err := checkVolumeID(req.GetVolumeId()); err != nil {
		return target{}, err
	}
	return parseTarget(kubeletDir, req.GetTargetPath())
}

func checkVolumeID(id string) error {
	switch {
	case id == "":
		return invalid("volume_id is required")
	case len(id) > maxVolumeID:
		return invalid("volume_id has %d bytes, at most %d are allowed", len(id), maxVolumeID)
	}
	return nil
}

func checkCapability(c *spec.VolumeCapability) error {
	switch {
	case c == nil:
		return invalid("volume_capability is required")
	case c.GetBlock() != nil:
		return invalid("volume_capability: the volume is a directory, not a block device; use access type mount")
	case c.GetMount() == nil:
		return invalid("volume_capability: access type mount is required")
	case c.GetMount().GetFsType() != "":
		return invalid("volume_capability.mount.fs_type: the volume is a directory of this node and has no file system of its own; remove spec.volumes[].csi.fsType from the pod")
	case len(c.GetMount().GetMountFlags()) > 0:
		return invalid("volume_capability.mount.mount_flags: the mount has the flags ro, nosuid, nodev and noexec, and no others can be chosen; remove them")
	}
	switch mode := c.GetAccessMode().GetMode(); mode {
	case spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER,
		spec.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
		spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
		spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
		return nil
	case spec.VolumeCapability_AccessMode_UNKNOWN:
		return invalid("volume_capability.access_mode is required")
	default:
		return invalid("volume_capability.access_mode %s: the volume is this node's own; use a mode of a single node", mode)
	}
}
