package k8s

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"
)

// Name is the selector type and the name in the configuration.
const Name = "k8s"

// Values of Config.PodSource.
const (
	sourceAuto      = "auto"
	sourceAPIServer = "api_server"
	sourceKubelet   = "kubelet"
)

const (
	defaultNodeNameEnv   = "MY_NODE_NAME"
	defaultSecurePort    = 10250
	defaultPollAttempts  = 60
	defaultPollInterval  = 500 * time.Millisecond
	defaultReload        = time.Minute
	serviceAccountFolder = "/var/run/secrets/kubernetes.io/serviceaccount/"
)

// Config is the plugin_data of WorkloadAttestor "k8s".
//
//credence:plugin_data agent WorkloadAttestor k8s
type Config struct {
	// PodSource says who is asked about pods: api_server (a watch, limited to
	// this node), kubelet (its /pods, at each attestation), or auto: a watch if
	// the node's name is known and the API server allows it, else the kubelet.
	PodSource string `hcl:"pod_source" default:"auto" ours:"true"`
	// APIServerURL is where the API server is, such as
	// https://10.96.0.1:443.
	APIServerURL string `hcl:"api_server_url" ours:"true" unset:"by KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT, as pods have them"`
	// APIServerCAPath is a PEM file with the authorities that the API server is
	// verified with; it is read again when it changes.
	APIServerCAPath string `hcl:"api_server_ca_path" ours:"true" unset:"/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"`
	// APIServerTokenPath is a file with the bearer token for the API server; it
	// is read again as it rotates.
	APIServerTokenPath string `hcl:"api_server_token_path" ours:"true" unset:"/var/run/secrets/kubernetes.io/serviceaccount/token"`

	// NodeName is this node's name in Kubernetes. Without one no watch is
	// possible, and the kubelet is asked at 127.0.0.1, which takes the host's
	// network.
	NodeName string `hcl:"node_name" unset:"the variable that node_name_env names"`
	// NodeNameEnv is the environment variable with the node's name, from the
	// field spec.nodeName of the agent's pod.
	NodeNameEnv string `hcl:"node_name_env" unset:"MY_NODE_NAME"`

	// KubeletSecurePort is the kubelet's TLS port at the node's name; exclusive
	// with KubeletReadOnlyPort.
	KubeletSecurePort int `hcl:"kubelet_secure_port" unset:"10250"`
	// KubeletReadOnlyPort is the kubelet's port without TLS at 127.0.0.1, often
	// 10255: whoever can listen there in its place decides what pods there are.
	KubeletReadOnlyPort int `hcl:"kubelet_read_only_port" unset:"the secure port is used"`
	// KubeletCAPath is a PEM file with the authorities that the kubelet is
	// verified with.
	KubeletCAPath string `hcl:"kubelet_ca_path" unset:"/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"`
	// SkipKubeletVerification believes whoever answers on the secure port.
	SkipKubeletVerification bool `hcl:"skip_kubelet_verification"`
	// TokenPath is a file with the bearer token for the kubelet.
	TokenPath string `hcl:"token_path" unset:"/var/run/secrets/kubernetes.io/serviceaccount/token"`
	// CertificatePath is a PEM file with a client certificate for the kubelet,
	// in the place of the token; it needs PrivateKeyPath.
	CertificatePath string `hcl:"certificate_path"`
	// PrivateKeyPath is a PEM file with its key.
	PrivateKeyPath string `hcl:"private_key_path"`
	// UseAnonymousAuthentication shows the kubelet neither.
	UseAnonymousAuthentication bool `hcl:"use_anonymous_authentication"`
	// DisableKubeletClient never asks the kubelet: the watch is all there is.
	DisableKubeletClient bool `hcl:"disable_kubelet_client"`
	// MaxPollAttempts is how often the kubelet is asked for a pod or container
	// that it does not have yet, within the 5 s of an attestation. A watch needs
	// none.
	MaxPollAttempts int `hcl:"max_poll_attempts" unset:"60"`
	// PollRetryInterval is the least time between two requests to the kubelet;
	// its answers are used for so long.
	PollRetryInterval time.Duration `hcl:"poll_retry_interval" unset:"500ms"`
	// ReloadInterval is how old what was read of tokens, certificates and
	// authorities may be when it is used; after a 401 they are read at once.
	ReloadInterval time.Duration `hcl:"reload_interval" unset:"1m"`

	// DisableContainerSelectors leaves out container-name and container-image,
	// so that nothing waits for a container's status, and takes containers that no
	// status names, such as those of sandboxed runtimes.
	DisableContainerSelectors bool `hcl:"disable_container_selectors"`
	// EnableNamespaceLabels adds ns-label, for which namespaces are watched too.
	EnableNamespaceLabels bool `hcl:"enable_namespace_labels"`
	// VerboseContainerLocatorLogs logs the cgroup paths that are looked at, at
	// level DEBUG.
	VerboseContainerLocatorLogs bool `hcl:"verbose_container_locator_logs"`
	// UseNewContainerLocator chooses between SPIRE's two ways to find a container.
	UseNewContainerLocator *bool `hcl:"use_new_container_locator" accepted:"there is one way, for cgroup versions 1 and 2"`
	// Sigstore verifies signatures of images.
	Sigstore *Sigstore `hcl:"sigstore" refused:"this version verifies no signatures of images; let an admission policy admit signed images only, select by container-image with a digest, and remove the section"`
	// Experimental is SPIRE's section of what may change.
	Experimental Experimental `hcl:"experimental"`
}

// Sigstore is the section sigstore.
type Sigstore struct {
	// AllowedIdentities are subjects by issuer.
	AllowedIdentities map[string][]string `hcl:"allowed_identities"`
	// SkippedImages are images that are not verified.
	SkippedImages []string `hcl:"skipped_images"`
	// RekorURL is a transparency log.
	RekorURL string `hcl:"rekor_url"`
	// IgnoreSCT does without certificate timestamps.
	IgnoreSCT bool `hcl:"ignore_sct"`
	// IgnoreTlog does without the transparency log.
	IgnoreTlog bool `hcl:"ignore_tlog"`
	// IgnoreAttestations does without attestations of images.
	IgnoreAttestations bool `hcl:"ignore_attestations"`
	// RegistryCredentials are for registries, by their names.
	RegistryCredentials map[string]RegistryCredential `hcl:"registry_credentials"`
}

// RegistryCredential is one of the section registry_credentials.
type RegistryCredential struct {
	// Username is who pulls.
	Username string `hcl:"username"`
	// Password is theirs.
	Password string `hcl:"password"`
}

// Experimental is the section experimental.
type Experimental struct {
	// APIServer is about SPIRE's client of the API server.
	APIServer APIServer `hcl:"api_server"`
	// Broker is about the SPIFFE Broker API.
	Broker *Broker `hcl:"broker" refused:"this version has no Broker API; let each workload ask for itself and remove the section"`
}

// APIServer is the section experimental.api_server.
type APIServer struct {
	// Cache keeps objects that brokers refer to.
	Cache APIServerCache `hcl:"cache"`
}

// APIServerCache is the section experimental.api_server.cache.
type APIServerCache struct {
	// Enabled switches it on.
	Enabled bool `hcl:"enabled" accepted:"pods and namespaces are watched, and there are no brokers to look up other objects for"`
}

// Broker is the section experimental.broker.
type Broker struct {
	// AccessPolicy is enforced or permissive.
	AccessPolicy string `hcl:"access_policy"`
	// Brokers are those who may ask.
	Brokers []struct {
		// ID is the broker's SPIFFE ID.
		ID string `hcl:"id"`
		// PodReferenceScope is agent_node or cluster.
		PodReferenceScope string `hcl:"pod_reference_scope"`
	} `hcl:"brokers"`
}

// Validate reports each problem, with its key, that shows without looking at the
// machine. What SPIRE's attestor refuses is refused here, but for node_name
// beside disable_kubelet_client, which the watch needs.
func (c Config) Validate() error {
	var problems []error
	report := func(key, format string, args ...any) {
		problems = append(problems, fmt.Errorf(key+": "+format, args...))
	}
	switch c.source() {
	case sourceAuto, sourceAPIServer, sourceKubelet:
	default:
		report("pod_source", "%q is not known; use auto, api_server or kubelet", c.PodSource)
	}
	for _, p := range [...]struct {
		key  string
		port int
	}{{"kubelet_secure_port", c.KubeletSecurePort}, {"kubelet_read_only_port", c.KubeletReadOnlyPort}} {
		if p.port < 0 || p.port > 65535 {
			report(p.key, "%d is not a port between 1 and 65535", p.port)
		}
	}
	if c.KubeletSecurePort > 0 && c.KubeletReadOnlyPort > 0 {
		report("kubelet_read_only_port", "is exclusive with kubelet_secure_port; keep one")
	}
	if (c.CertificatePath == "") != (c.PrivateKeyPath == "") {
		report("certificate_path", "and private_key_path need each other; set both or neither")
	}
	if c.APIServerURL != "" {
		if u, err := url.Parse(c.APIServerURL); err != nil || u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
			report("api_server_url", "must be https:// with a host and nothing behind it, such as https://10.96.0.1:443")
		}
	}
	c.kubeletKeys(report)
	return errors.Join(problems...)
}

// kubeletKeys reports keys for the kubelet where it is not asked.
func (c Config) kubeletKeys(report func(key, format string, args ...any)) {
	if !c.DisableKubeletClient {
		return
	}
	if c.source() == sourceKubelet {
		report("disable_kubelet_client", `is exclusive with pod_source = "kubelet"; keep one`)
	}
	for _, k := range [...]struct {
		key string
		set bool
	}{
		{"kubelet_read_only_port", c.KubeletReadOnlyPort > 0},
		{"kubelet_secure_port", c.KubeletSecurePort > 0},
		{"kubelet_ca_path", c.KubeletCAPath != ""},
		{"skip_kubelet_verification", c.SkipKubeletVerification},
		{"token_path", c.TokenPath != ""},
		{"certificate_path", c.CertificatePath != ""},
		{"private_key_path", c.PrivateKeyPath != ""},
		{"use_anonymous_authentication", c.UseAnonymousAuthentication},
	} {
		if k.set {
			report(k.key, "is for the kubelet, which disable_kubelet_client says is not asked; remove one of them")
		}
	}
}

// Check reports what the configuration needs of its surroundings, the environment
// included, and does not find.
func (c Config) Check() error {
	_, _, err := c.apiServer()
	if err == nil && c.EnableNamespaceLabels {
		if _, err = c.namespaces(); err != nil {
			err = fmt.Errorf("enable_namespace_labels: %w", err)
		}
	}
	return err
}

func (c Config) source() string { return cmp.Or(c.PodSource, sourceAuto) }

// nodeName is empty when it is not known.
func (c Config) nodeName() string {
	return cmp.Or(c.NodeName, os.Getenv(cmp.Or(c.NodeNameEnv, defaultNodeNameEnv)))
}

// apiServerURL is empty when it is not known.
func (c Config) apiServerURL() string {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	switch {
	case c.APIServerURL != "":
		return strings.TrimRight(c.APIServerURL, "/")
	case host == "" || port == "":
		return ""
	}
	return "https://" + joinHostPort(host, port)
}

// apiServer says how the API server is reached and whom it sees; false: it is
// not to be asked, or not known. The error says what pod_source lacks.
func (c Config) apiServer() (endpoint, bool, error) {
	at := c.apiServerURL()
	missing := ""
	switch {
	case c.source() == sourceKubelet:
		return endpoint{}, false, nil
	case c.nodeName() == "":
		missing = "the node's name: set node_name, or the variable that node_name_env names (default MY_NODE_NAME) from the field spec.nodeName"
	case at == "":
		missing = "the API server's address: set api_server_url, or run the agent in a pod"
	default:
		return endpoint{
			name: "the API server", base: at, reload: cmp.Or(c.ReloadInterval, defaultReload),
			caPath:    cmp.Or(c.APIServerCAPath, serviceAccountFolder+"ca.crt"),
			tokenPath: cmp.Or(c.APIServerTokenPath, serviceAccountFolder+"token"),
		}, true, nil
	}
	if c.source() == sourceAuto && !c.DisableKubeletClient {
		return endpoint{}, false, nil
	}
	return endpoint{}, false, errors.New("pod_source: a watch on the API server needs " + missing)
}

// namespaces is the API server as enable_namespace_labels needs it, whoever is
// asked about pods.
func (c Config) namespaces() (endpoint, error) {
	c.PodSource, c.NodeName = sourceAPIServer, cmp.Or(c.nodeName(), "any")
	e, _, err := c.apiServer()
	return e, err
}

// kubelet says how the kubelet is reached; false: it is not to be asked.
func (c Config) kubelet() (endpoint, bool) {
	if c.source() == sourceAPIServer || c.DisableKubeletClient {
		return endpoint{}, false
	}
	if c.KubeletReadOnlyPort > 0 {
		return endpoint{name: "the kubelet", base: fmt.Sprintf("http://127.0.0.1:%d", c.KubeletReadOnlyPort)}, true
	}
	name := c.nodeName()
	e := endpoint{
		name: "the kubelet", reload: cmp.Or(c.ReloadInterval, defaultReload),
		base:   "https://" + joinHostPort(cmp.Or(name, "127.0.0.1"), fmt.Sprint(cmp.Or(c.KubeletSecurePort, defaultSecurePort))),
		anyone: c.SkipKubeletVerification, anyName: name == "",
		caPath: cmp.Or(c.KubeletCAPath, serviceAccountFolder+"ca.crt"),
	}
	switch {
	case c.UseAnonymousAuthentication:
	case c.CertificatePath != "":
		e.certPath, e.keyPath = c.CertificatePath, c.PrivateKeyPath
	default:
		e.tokenPath = cmp.Or(c.TokenPath, serviceAccountFolder+"token")
	}
	return e, true
}
