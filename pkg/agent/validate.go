package agent

import (
	"errors"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// leastAvailability is the least availability_target, as in SPIRE.
const leastAvailability = 24 * time.Hour

// leastSync is the least sync_interval that a server can be expected to bear.
const leastSync = time.Second

// defaultServerPort is that of Section.
const defaultServerPort = 8081

// reporter takes one problem: the key, and what is wrong with its value.
type reporter = func(key, format string, args ...any)

// Validate reports every problem of the configuration's text, one a line in the
// order of the file, each with file, line and key. But for plugin_data_file it
// reads no other file; see [Config.Preflight] for these.
func (c *Config) Validate() error {
	_, refused := c.unsupported()
	problems := []error{c.unread, refused, c.checkPlugins()}
	report := func(key, format string, args ...any) {
		problems = append(problems, c.file.Errorf(key, format, args...))
	}
	s := &c.Agent
	s.required(report)
	s.addresses(report)
	s.values(report)
	s.bootstraps(report)
	s.checkCSI(report)
	s.Profiling.Validate(func(key string, err error) { report("agent."+key, "%w", err) })
	c.Telemetry.Validate(report)
	c.Health.Validate(report)
	telemetry.CheckPorts(report, c.Health.Endpoint(), c.Telemetry.Endpoint(), s.Profiling.Endpoint("agent"))
	return config.Problems(problems...)
}

// unsupported are the keys that are set and not honoured.
func (c *Config) unsupported() ([]config.Notice, error) {
	return config.Unsupported(c.file, "", c)
}

func (s *Section) required(report reporter) {
	for _, required := range [...]struct{ key, value string }{
		{"data_dir", s.DataDir}, {"trust_domain", s.TrustDomain}, {"socket_path", s.SocketPath},
	} {
		if required.value == "" {
			report("agent."+required.key, "is required")
		}
	}
}

// addresses checks where the servers are: there is one way to say it.
func (s *Section) addresses(report reporter) {
	switch {
	case s.ServerAddress == "" && len(s.ServerAddresses) == 0:
		report("agent.server_address", "is required, or server_addresses for several servers")
	case s.ServerAddress != "" && len(s.ServerAddresses) > 0:
		report("agent.server_addresses", "is exclusive with server_address; keep one")
	case s.ServerAddress == "" && s.ServerPort != defaultServerPort:
		report("agent.server_port", "is for server_address; each of server_addresses has a port of its own")
	}
	if host := strings.Trim(s.ServerAddress, "[]"); strings.Contains(host, ":") {
		if _, err := netip.ParseAddr(host); err != nil {
			report("agent.server_address", "%q is neither a host name nor an IP address; a port is for server_port", s.ServerAddress)
		}
	}
	if s.ServerPort < 1 || s.ServerPort > 65535 {
		report("agent.server_port", "%d is not a port between 1 and 65535", s.ServerPort)
	}
	for i, a := range s.ServerAddresses {
		host, port, err := net.SplitHostPort(a)
		n, notNumber := strconv.ParseUint(port, 10, 16)
		switch {
		case err != nil || host == "" || notNumber != nil || n == 0:
			report("agent.server_addresses", "%q is not host:port, such as \"server-1.example.org:8081\" or \"[2001:db8::1]:8081\"", a)
		case slices.Contains(s.ServerAddresses[:i], a):
			report("agent.server_addresses", "%q is there twice", a)
		}
	}
}

// values checks the keys with a small set of values or a syntax.
func (s *Section) values(report reporter) {
	if err := s.checkAdminSocket(); err != nil {
		report("agent.admin_socket_path", "%w", err)
	}
	if _, err := telemetry.ParseLevel(s.LogLevel); err != nil {
		report("agent.log_level", "%w", err)
	}
	if f := strings.ToLower(s.LogFormat); f != "" && f != "text" && f != "json" {
		report("agent.log_format", "%q is not text or json", s.LogFormat)
	}
	if _, err := spiffeid.TrustDomainFromString(s.TrustDomain); err != nil && s.TrustDomain != "" {
		report("agent.trust_domain", "%q: %w", s.TrustDomain, err)
	}
	if s.JoinToken != "" && s.JoinTokenFile != "" {
		report("agent.join_token_file", "is exclusive with join_token")
	}
	if t, err := keys.ParseType(s.WorkloadX509SVIDKeyType); err != nil || (t != keys.ECP256 && t != keys.RSA2048) {
		report("agent.workload_x509_svid_key_type", "%q is not supported; use ec-p256 or rsa-2048", s.WorkloadX509SVIDKeyType)
	}
	if s.AvailabilityTarget != 0 && s.AvailabilityTarget < leastAvailability {
		report("agent.availability_target", "%v is less than %v", s.AvailabilityTarget, leastAvailability)
	}
	if every := s.Experimental.SyncInterval; every != 0 && every < leastSync {
		report("agent.experimental.sync_interval", "%v is less than %v", every, leastSync)
	}
	if s.X509SVIDCacheMaxSize < 0 {
		report("agent.x509_svid_cache_max_size", "%d is negative", s.X509SVIDCacheMaxSize)
	}
	if s.JWTSVIDCacheMaxSize < 0 {
		report("agent.jwt_svid_cache_max_size", "%d is negative", s.JWTSVIDCacheMaxSize)
	}
	if key := s.Experimental.RateLimit.negative(); key != "" {
		report("agent.experimental.ratelimit."+key, "is negative; 0 is no limit")
	}
}

// bootstraps checks what the server is verified with at first contact: there is
// one way, and no doubt which.
func (s *Section) bootstraps(report reporter) {
	var ways []string
	for _, way := range [...]struct {
		key string
		set bool
	}{
		{"trust_bundle_path", s.TrustBundlePath != ""},
		{"trust_bundle_url", s.TrustBundleURL != ""},
		{"trust_bundle_spiffe_workload_api", s.TrustBundleWorkloadAPI != ""},
		{"insecure_bootstrap", s.InsecureBootstrap},
	} {
		if way.set {
			ways = append(ways, way.key)
		}
	}
	switch {
	case len(ways) == 0:
		report("agent.trust_bundle_path", "is required for the first contact with the server (write the output of `credence-server bundle show` to a file), or set insecure_bootstrap = true for a trial")
	case len(ways) > 1:
		report("agent."+ways[1], "is exclusive with %s; keep one", ways[0])
	}
	if s.TrustBundleFormat != formatPEM && s.TrustBundleFormat != formatSPIFFE {
		report("agent.trust_bundle_format", "%q is not known; use pem or spiffe", s.TrustBundleFormat)
	}
	if !slices.Contains([]string{rebootstrapNever, rebootstrapAuto, rebootstrapAlways}, s.RebootstrapMode) {
		report("agent.rebootstrap_mode", "%q is not known; use never, auto or always", s.RebootstrapMode)
	}
	if s.RebootstrapDelay < 0 {
		report("agent.rebootstrap_delay", "%v is negative", s.RebootstrapDelay)
	}
	if s.TrustBundleWorkloadAPI != "" {
		if err := workloadapi.ValidateAddress(s.TrustBundleWorkloadAPI); err != nil {
			report("agent.trust_bundle_spiffe_workload_api", "%w; use an address such as unix:///run/upstream/api.sock", err)
		}
	}
	if s.TrustBundleUnixSocket != "" && s.TrustBundleURL == "" {
		report("agent.trust_bundle_unix_socket", "needs trust_bundle_url, which says what to ask for")
	}
	if err := s.checkURL(); err != nil {
		report("agent.trust_bundle_url", "%w", err)
	}
}

// checkURL: what comes over the network is trusted with everything, so it comes
// over https. On a Unix socket the query is for what the agent says about
// itself.
func (s *Section) checkURL() error {
	if s.TrustBundleURL == "" {
		return nil
	}
	u, err := url.Parse(s.TrustBundleURL)
	switch {
	case err != nil:
		return errors.New("is not a URL")
	case s.TrustBundleUnixSocket == "" && (u.Scheme != "https" || u.Host == ""):
		return errors.New("must begin with https:// and name a host: what it gives is trusted")
	case s.TrustBundleUnixSocket != "" && u.Scheme != "http":
		return errors.New("must begin with http:// when it is asked for over trust_bundle_unix_socket")
	case s.TrustBundleUnixSocket == "":
		return nil
	}
	for name := range u.Query() {
		if strings.HasPrefix(name, "spiffe-") || strings.HasPrefix(name, "spire-") {
			return errors.New("its query cannot have names that begin with spiffe- or spire-: the agent adds these")
		}
	}
	return nil
}
