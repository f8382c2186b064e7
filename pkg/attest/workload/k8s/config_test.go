package k8s

import (
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		cfg  Config
		want string // keys with a problem
	}{
		"nothing":                   {},
		"the chart's":               {cfg: Config{SkipKubeletVerification: true}},
		"a source that is none":     {cfg: Config{PodSource: "docker"}, want: "pod_source"},
		"both ports":                {cfg: Config{KubeletSecurePort: 1, KubeletReadOnlyPort: 2}, want: "kubelet_read_only_port"},
		"a port that is none":       {cfg: Config{KubeletSecurePort: 65536}, want: "kubelet_secure_port"},
		"a negative port":           {cfg: Config{KubeletReadOnlyPort: -1}, want: "kubelet_read_only_port"},
		"a certificate alone":       {cfg: Config{CertificatePath: "x"}, want: "certificate_path"},
		"a key alone":               {cfg: Config{PrivateKeyPath: "x"}, want: "certificate_path"},
		"an URL without TLS":        {cfg: Config{APIServerURL: "http://x"}, want: "api_server_url"},
		"an URL with a path":        {cfg: Config{APIServerURL: "https://x/y"}, want: "api_server_url"},
		"an URL":                    {cfg: Config{APIServerURL: "https://[::1]:6443/"}},
		"no kubelet":                {cfg: Config{DisableKubeletClient: true, NodeName: "x"}},
		"no kubelet but it alone":   {cfg: Config{DisableKubeletClient: true, PodSource: sourceKubelet}, want: "disable_kubelet_client"},
		"no kubelet and keys of it": {cfg: Config{DisableKubeletClient: true, KubeletSecurePort: 1, TokenPath: "x", SkipKubeletVerification: true}, want: "kubelet_secure_port skip_kubelet_verification token_path"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []string
			if err := tc.cfg.Validate(); err != nil {
				for _, line := range strings.Split(err.Error(), "\n") {
					key, _, _ := strings.Cut(line, ":")
					got = append(got, key)
				}
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("problems with %q, want %q", got, tc.want)
			}
		})
	}
}

// TestNewNeeds: what a watch cannot be without is said at the start.
func TestNewNeeds(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("MY_NODE_NAME", "")
	for name, tc := range map[string]struct {
		cfg  Config
		want string
	}{
		"auto":                       {},
		"kubelet":                    {cfg: Config{PodSource: sourceKubelet}},
		"watch without a name":       {cfg: Config{PodSource: sourceAPIServer}, want: "set node_name"},
		"watch without an address":   {cfg: Config{PodSource: sourceAPIServer, NodeName: node}, want: "set api_server_url"},
		"no kubelet":                 {cfg: Config{DisableKubeletClient: true}, want: "set node_name"},
		"labels without an address":  {cfg: Config{EnableNamespaceLabels: true}, want: "enable_namespace_labels"},
		"what Validate would report": {cfg: Config{PodSource: "x"}, want: "pod_source"},
	} {
		_, err := New(tc.cfg, Options{})
		if (tc.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want %q", name, err, tc.want)
		}
	}
}

// TestInPod: the environment of a pod says where the API server is.
func TestInPod(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "443")
	t.Setenv("MY_NODE_NAME", node)
	t.Setenv("OTHER_NODE_NAME", "other")
	e, ok, err := Config{}.apiServer()
	if e.base != "https://[fd00::1]:443" || !ok || err != nil {
		t.Errorf("%q, %v, %v", e.base, ok, err)
	}
	for _, tc := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "https://" + node + ":10250"},
		{Config{NodeNameEnv: "OTHER_NODE_NAME"}, "https://other:10250"},
		{Config{NodeName: "named", KubeletSecurePort: 1}, "https://named:1"},
		{Config{NodeNameEnv: "UNSET_NODE_NAME"}, "https://127.0.0.1:10250"},
		{Config{KubeletReadOnlyPort: 10255}, "http://127.0.0.1:10255"},
	} {
		if e, ok := tc.cfg.kubelet(); e.base != tc.want || !ok {
			t.Errorf("%+v: %q, %v", tc.cfg, e.base, ok)
		}
	}
}
