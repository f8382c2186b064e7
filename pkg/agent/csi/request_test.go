package csi

import (
	"path/filepath"
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const testTarget = "/var/lib/kubelet/pods/8a0e9a3c-8f0e-4a37-9d42-5a0e3a0e6f11/volumes/kubernetes.io~csi/spiffe-workload-api/mount"

// goodRequest is what kubelet sends for an inline volume.
func goodRequest() *spec.NodePublishVolumeRequest {
	return &spec.NodePublishVolumeRequest{
		VolumeId: "csi-1", TargetPath: testTarget, Readonly: true,
		VolumeCapability: &spec.VolumeCapability{
			AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{}},
			AccessMode: &spec.VolumeCapability_AccessMode{Mode: spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		},
		VolumeContext: map[string]string{ephemeralKey: "true", podNameKey: "web-0", podNamespaceKey: "shop"},
	}
}

func TestParsePublish(t *testing.T) {
	t.Parallel()
	mode := func(m spec.VolumeCapability_AccessMode_Mode) func(*spec.NodePublishVolumeRequest) {
		return func(r *spec.NodePublishVolumeRequest) { r.VolumeCapability.AccessMode.Mode = m }
	}
	tests := []struct {
		name string
		with func(*spec.NodePublishVolumeRequest)
		says string // empty: granted
	}{
		{"as kubelet sends it", func(*spec.NodePublishVolumeRequest) {}, ""},
		{"a reader", mode(spec.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY), ""},
		{"several writers", mode(spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER), ""},
		{"no ID", func(r *spec.NodePublishVolumeRequest) { r.VolumeId = "" }, "volume_id is required"},
		{"no target", func(r *spec.NodePublishVolumeRequest) { r.TargetPath = "" }, "target_path is required"},
		{"no capability", func(r *spec.NodePublishVolumeRequest) { r.VolumeCapability = nil }, "volume_capability is required"},
		{"a block device", func(r *spec.NodePublishVolumeRequest) {
			r.VolumeCapability.AccessType = &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}}
		}, "not a block device"},
		{"neither", func(r *spec.NodePublishVolumeRequest) { r.VolumeCapability.AccessType = nil }, "access type mount is required"},
		{"a file system", func(r *spec.NodePublishVolumeRequest) { r.VolumeCapability.GetMount().FsType = "ext4" }, "csi.fsType"},
		{"flags", func(r *spec.NodePublishVolumeRequest) { r.VolumeCapability.GetMount().MountFlags = []string{"rw"} }, "mount_flags"},
		{"no mode", func(r *spec.NodePublishVolumeRequest) { r.VolumeCapability.AccessMode = nil }, "access_mode is required"},
		{"several nodes", mode(spec.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY), "access_mode MULTI_NODE_READER_ONLY"},
		{"a mode that is not known", mode(99), "access_mode 99"},
		{"to be written", func(r *spec.NodePublishVolumeRequest) { r.Readonly = false }, "readOnly: true"},
		{"a PersistentVolume", func(r *spec.NodePublishVolumeRequest) { r.VolumeContext[ephemeralKey] = "false" }, "only ephemeral"},
		{"without podInfoOnMount", func(r *spec.NodePublishVolumeRequest) { r.VolumeContext = nil }, "podInfoOnMount: true"},
		{"nothing", func(r *spec.NodePublishVolumeRequest) { proto.Reset(r) }, "volume_id is required"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := goodRequest()
			test.with(r)
			p, err := parsePublish("/var/lib/kubelet", r)
			switch {
			case test.says == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.says == "":
				if p.target.path != r.GetTargetPath() || p.volume != r.GetVolumeId() || p.pod != "web-0" || p.namespace != "shop" {
					t.Errorf("got %+v", p)
				}
			case status.Code(asStatus(err)) != codes.InvalidArgument || !strings.Contains(err.Error(), test.says):
				t.Errorf("%v, want InvalidArgument that says %q", err, test.says)
			}
		})
	}
}

func TestParseUnpublish(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		id, path string
		ok       bool
	}{
		{"csi-1", testTarget, true}, {"", testTarget, false}, {"csi-1", "", false}, {"csi-1", "/etc", false},
	} {
		_, err := parseUnpublish("/var/lib/kubelet", &spec.NodeUnpublishVolumeRequest{VolumeId: test.id, TargetPath: test.path})
		if test.ok != (err == nil) || !test.ok && status.Code(asStatus(err)) != codes.InvalidArgument {
			t.Errorf("%q at %q: %v", test.id, test.path, err)
		}
	}
}

func TestParseTarget(t *testing.T) {
	t.Parallel()
	const good = "/k/pods/uid/volumes/kubernetes.io~csi/api/mount"
	tests := map[string]bool{
		good: true,
		"/k/pods/uid/volumes/kubernetes.io~csi/api": false,
		good + "/":            false,
		good + "/x":           false,
		"/k/pods/uid/volumes": false,
		"/k/pods":             false,
		"/k":                  false,
		"/":                   false,
		"k/pods/uid/volumes/kubernetes.io~csi/api/mount":              false,
		"/k//pods/uid/volumes/kubernetes.io~csi/api/mount":            false,
		"/k/pods/../pods/uid/volumes/kubernetes.io~csi/api/mount":     false,
		"/k/pods/uid/volumes/kubernetes.io~csi/../mount":              false,
		"/k/pods/../volumes/kubernetes.io~csi/api/mount":              false,
		"/k/pods/./volumes/kubernetes.io~csi/api/mount":               false,
		"/k/pods/uid/volumes/kubernetes.io~csi//mount":                false,
		"/k/pods/uid/volumes/kubernetes.io~csi/a\x00b/mount":          false,
		"/k/pods/uid/volumes/kubernetes.io~secret/api/mount":          false,
		"/k/pods/uid/plugins/kubernetes.io~csi/api/mount":             false,
		"/k/podsx/uid/volumes/kubernetes.io~csi/api/mount":            false,
		"/kk/pods/uid/volumes/kubernetes.io~csi/api/mount":            false,
		"/x/k/pods/uid/volumes/kubernetes.io~csi/api/mount":           false,
		"/etc/uid/volumes/kubernetes.io~csi/api/mount":                false,
		"/k/pods/uid/volumes/kubernetes.io~csi/Some name ~1%2e/mount": true,
	}
	for path, ok := range tests {
		got, err := parseTarget("/k", path)
		if ok != (err == nil) || ok && got.path != path {
			t.Errorf("%q: %+v, %v, want ok %v", path, got, err, ok)
		}
	}
}

func TestS08_RequestLimits(t *testing.T) {
	t.Parallel()
	for _, more := range []int{-1, 0, 1} {
		path := strings.Replace(testTarget, "spiffe-workload-api", strings.Repeat("x", maxTarget+more-len(testTarget)+len("spiffe-workload-api")), 1)
		if _, err := parseTarget("/var/lib/kubelet", path); (err == nil) != (more <= 0) || len(path) != maxTarget+more {
			t.Errorf("target_path with %d bytes: %v", len(path), err)
		}
		r := goodRequest()
		r.VolumeId = strings.Repeat("x", maxVolumeID+more)
		if _, err := parsePublish("/var/lib/kubelet", r); (err == nil) != (more <= 0) {
			t.Errorf("volume_id with %d bytes: %v", len(r.VolumeId), err)
		}
	}
}

// FuzzTarget: whatever is taken for a target is one, and below the directory of
// pods.
func FuzzTarget(f *testing.F) {
	f.Add("/var/lib/kubelet", testTarget)
	f.Add("/", "/pods/uid/volumes/kubernetes.io~csi/api/mount")
	f.Add("/k", "/k/pods/../../etc/volumes/kubernetes.io~csi/api/mount")
	f.Fuzz(func(t *testing.T, kubelet, path string) {
		kubelet = filepath.Clean(kubelet)
		if !filepath.IsAbs(kubelet) {
			return
		}
		got, err := parseTarget(kubelet, path)
		if err != nil {
			if status.Code(asStatus(err)) != codes.InvalidArgument {
				t.Errorf("%v, want InvalidArgument", err)
			}
			return
		}
		pods := filepath.Join(kubelet, "pods")
		if again := filepath.Join(append(append([]string{pods}, got.parents()...), "mount")...); again != path {
			t.Errorf("%q was taken for %q", path, again)
		}
		if rel, err := filepath.Rel(pods, path); err != nil || !filepath.IsLocal(rel) {
			t.Errorf("%q is not below %q", path, pods)
		}
		for _, name := range got.parents() {
			if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
				t.Errorf("%q has an element %q", path, name)
			}
		}
	})
}

// FuzzPublish: no message gets more than a read-only ephemeral volume at a
// target.
func FuzzPublish(f *testing.F) {
	for _, r := range []*spec.NodePublishVolumeRequest{goodRequest(), {}, {VolumeId: "x"}} {
		data, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := new(spec.NodePublishVolumeRequest)
		if proto.Unmarshal(data, r) != nil {
			return
		}
		p, err := parsePublish("/var/lib/kubelet", r)
		if err != nil {
			if status.Code(asStatus(err)) != codes.InvalidArgument {
				t.Errorf("%v, want InvalidArgument", err)
			}
			return
		}
		if !r.GetReadonly() || r.GetVolumeContext()[ephemeralKey] != "true" || r.GetVolumeId() == "" || r.GetVolumeCapability().GetMount() == nil {
			t.Errorf("granted %v", r)
		}
		if !strings.HasPrefix(p.target.path, "/var/lib/kubelet/pods/") {
			t.Errorf("granted at %q", p.target.path)
		}
	})
}
