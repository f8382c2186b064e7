package agent

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Config is the agent's configuration file: SPIRE's sections and keys.
type Config struct {
	Agent     Section                `hcl:"agent"`
	Plugins   config.Plugins         `hcl:"plugins"`
	Telemetry telemetry.Config       `hcl:"telemetry"`
	Health    telemetry.HealthConfig `hcl:"health_checks"`
}

// Section is the section agent.
type Section struct {
	// DataDir holds the agent's state; required. It is made with mode 0700.
	DataDir string `hcl:"data_dir"`
	// TrustDomain of the server and of all identities served; required.
	TrustDomain string `hcl:"trust_domain"`
	// ServerAddress is a host name or an IP address; required.
	ServerAddress string `hcl:"server_address"`
	// ServerPort is the server's TCP port; default 8081.
	ServerPort int `hcl:"server_port"`
	// SocketPath is where workloads find the Workload API; the default
	// depends on the program's name and user, see docs/configuration.md.
	SocketPath string `hcl:"socket_path"`
	// AdminSocketPath is where operators find the admin API, outside the
	// directory of SocketPath; default none.
	AdminSocketPath string `hcl:"admin_socket_path"`

	// LogLevel is one of DEBUG, INFO, WARN, ERROR; default INFO.
	LogLevel string `hcl:"log_level"`
	// LogFormat is text or json; default text.
	LogFormat string `hcl:"log_format"`
	// LogFile is reopened on SIGUSR2; default standard output.
	LogFile string `hcl:"log_file"`

	// TrustBundlePath is a file with the server's authorities, for the first
	// contact; exclusive with InsecureBootstrap.
	TrustBundlePath string `hcl:"trust_bundle_path"`
	// TrustBundleFormat of that file: pem or spiffe; default pem.
	TrustBundleFormat string `hcl:"trust_bundle_format"`
	// InsecureBootstrap trusts whoever answers at first contact; default
	// false. Not for production.
	InsecureBootstrap bool `hcl:"insecure_bootstrap"`

	// RebootstrapMode says whether an agent that cannot verify the server
	// any more may go back to TrustBundlePath (or InsecureBootstrap): never,
	// auto (only one that can attest again) or always; default never.
	RebootstrapMode string `hcl:"rebootstrap_mode"`
	// RebootstrapDelay is for how long it must have been so; default 10m.
	RebootstrapDelay time.Duration `hcl:"rebootstrap_delay"`

	// JoinToken for the node attestor join_token.
	JoinToken string `hcl:"join_token"`
	// JoinTokenFile holds the join token; exclusive with JoinToken.
	JoinTokenFile string `hcl:"join_token_file"`

	// PersistSVIDs also keeps the workloads' keys and X509-SVIDs in data_dir
	// (mode 0600), so that an agent restarted while the server is away can
	// serve; default false. Ours, not SPIRE's.
	PersistSVIDs bool `hcl:"persist_svids"`
	// X509SVIDCacheMaxSize is how many X509-SVIDs are kept warm; default 1000.
	X509SVIDCacheMaxSize int `hcl:"x509_svid_cache_max_size"`
	// JWTSVIDCacheMaxSize is how many JWT-SVIDs are kept; default 1000.
	JWTSVIDCacheMaxSize int `hcl:"jwt_svid_cache_max_size"`
	// WorkloadX509SVIDKeyType is the type of the workloads' keys: ec-p256 or
	// rsa-2048; default ec-p256.
	WorkloadX509SVIDKeyType string `hcl:"workload_x509_svid_key_type"`
	// AllowUnauthenticatedVerifiers gives bundles to workloads that have no
	// identity; default false.
	AllowUnauthenticatedVerifiers bool `hcl:"allow_unauthenticated_verifiers"`
	// AllowedForeignJWTClaims are the claims that ValidateJWTSVID reports of
	// tokens from other trust domains, beside sub, aud and exp; default none.
	AllowedForeignJWTClaims []string `hcl:"allowed_foreign_jwt_claims"`
}

const (
	defaultServerPort       = 8081
	defaultRebootstrapDelay = 10 * time.Minute
	rebootstrapNever        = "never"
	rebootstrapAuto         = "auto"
	rebootstrapAlways       = "always"
	// attestorTimeout bounds one workload attestor's work on one call.
	attestorTimeout = 5 * time.Second
)

// Load reads a configuration file, HCL or JSON. The result is decoded, with
// defaults set, and not validated.
func Load(path string, expandEnv bool) (*Config, error) {
	f, err := config.Load(path, expandEnv)
	if err != nil {
		return nil, err
	}
	c := new(Config)
	if err := f.Decode(c); err != nil {
		return nil, err
	}
	c.SetDefaults()
	return c, nil
}

// SetDefaults fills in what was left out, as Load does.
func (c *Config) SetDefaults() {
	s := &c.Agent
	s.ServerPort = cmp.Or(s.ServerPort, defaultServerPort)
	s.TrustBundleFormat = cmp.Or(s.TrustBundleFormat, formatPEM)
	s.RebootstrapMode = cmp.Or(s.RebootstrapMode, rebootstrapNever)
	s.RebootstrapDelay = cmp.Or(s.RebootstrapDelay, defaultRebootstrapDelay)
	s.WorkloadX509SVIDKeyType = cmp.Or(s.WorkloadX509SVIDKeyType, keys.ECP256.String())
}

// Validate reports everything Run would refuse, one problem a line, each with
// its key. It reads no file and opens no socket.
func (c *Config) Validate() error {
	var problems []error
	bad := func(key, format string, args ...any) {
		problems = append(problems, fmt.Errorf("agent.%s: %s", key, fmt.Sprintf(format, args...)))
	}
	s := &c.Agent
	for _, required := range [...]struct{ key, value string }{
		{"data_dir", s.DataDir}, {"trust_domain", s.TrustDomain}, {"server_address", s.ServerAddress}, {"socket_path", s.SocketPath},
	} {
		if required.value == "" {
			bad(required.key, "is required")
		}
	}
	if err := s.checkAdminSocket(); err != nil {
		bad("admin_socket_path", "%v", err)
	}
	if _, err := telemetry.ParseLevel(s.LogLevel); err != nil {
		bad("log_level", "%v", err)
	}
	if f := strings.ToLower(s.LogFormat); f != "" && f != "text" && f != "json" {
		bad("log_format", "%q is not text or json", s.LogFormat)
	}
	if _, err := spiffeid.TrustDomainFromString(s.TrustDomain); err != nil && s.TrustDomain != "" {
		bad("trust_domain", "%q: %v", s.TrustDomain, err)
	}
	if s.ServerPort < 1 || s.ServerPort > 65535 {
		bad("server_port", "%d is not a port between 1 and 65535", s.ServerPort)
	}
	if s.TrustBundlePath != "" && s.InsecureBootstrap {
		bad("insecure_bootstrap", "is exclusive with trust_bundle_path; keep the trust bundle")
	}
	if s.TrustBundlePath == "" && !s.InsecureBootstrap {
		bad("trust_bundle_path", "is required for the first contact with the server (write the output of `credence-server bundle show` to a file), or set insecure_bootstrap = true for a trial")
	}
	if s.TrustBundleFormat != formatPEM && s.TrustBundleFormat != formatSPIFFE {
		bad("trust_bundle_format", "%q is not known; use pem or spiffe", s.TrustBundleFormat)
	}
	if !slices.Contains([]string{rebootstrapNever, rebootstrapAuto, rebootstrapAlways}, s.RebootstrapMode) {
		bad("rebootstrap_mode", "%q is not known; use never, auto or always", s.RebootstrapMode)
	}
	if s.JoinToken != "" && s.JoinTokenFile != "" {
		bad("join_token_file", "is exclusive with join_token")
	}
	if t, err := keys.ParseType(s.WorkloadX509SVIDKeyType); err != nil || (t != keys.ECP256 && t != keys.RSA2048) {
		bad("workload_x509_svid_key_type", "%q is not supported; use ec-p256 or rsa-2048", s.WorkloadX509SVIDKeyType)
	}
	if s.X509SVIDCacheMaxSize < 0 || s.JWTSVIDCacheMaxSize < 0 {
		bad("x509_svid_cache_max_size", "sizes cannot be negative")
	}
	problems = append(problems, c.Health.Validate(), c.Telemetry.Validate(), c.checkPlugins())
	return errors.Join(problems...)
}

// serverAddr is host:port.
func (s *Section) serverAddr() string {
	return net.JoinHostPort(s.ServerAddress, strconv.Itoa(s.ServerPort))
}
