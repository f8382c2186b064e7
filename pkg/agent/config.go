package agent

import (
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/telemetry"
)

// Config is the agent's configuration file: SPIRE's sections and keys.
type Config struct {
	// Agent has the agent's own keys.
	Agent Section `hcl:"agent"`
	// Plugins are the exchangeable parts.
	Plugins config.Plugins `hcl:"plugins"`
	// Telemetry shows metrics.
	Telemetry telemetry.Config `hcl:"telemetry"`
	// Health answers whether the agent is well.
	Health telemetry.HealthConfig `hcl:"health_checks"`

	// file is where the rest was read from, nil if from nowhere.
	file *config.File
	// unread are the keys of the file that could not be read.
	unread error
}

// Section is the section agent. The tag default is what a field has when the
// file does not set it; unset says so in words. Keys tagged refused or accepted
// are SPIRE's, without an effect here: see [config.Unsupported].
// docs/configuration.md is made from these structs.
type Section struct {
	// DataDir holds the agent's state. It is made with mode 0700.
	DataDir string `hcl:"data_dir" default:"."`
	// TrustDomain is the one of the server and of all identities served;
	// required.
	TrustDomain string `hcl:"trust_domain"`
	// ServerAddress is a host name or an IP address; a name may have several
	// addresses, each of which is a server. This or server_addresses is required.
	ServerAddress string `hcl:"server_address"`
	// ServerPort is the TCP port of the servers at server_address.
	ServerPort int `hcl:"server_port" default:"8081"`
	// ServerAddresses are host:port of the servers of the trust domain, in the
	// place of server_address and server_port: the agent is connected to one of
	// them, and goes to another one when it fails.
	ServerAddresses []string `hcl:"server_addresses" ours:"true"`
	// SocketPath is where workloads find the Workload API.
	SocketPath string `hcl:"socket_path" unset:"/run/credence/agent/public/api.sock; called as spire-agent: /tmp/spire-agent/public/api.sock"`
	// AdminSocketPath is where operators find the admin API, outside the
	// directory of SocketPath.
	AdminSocketPath string `hcl:"admin_socket_path" unset:"no admin API"`

	// LogLevel is one of DEBUG, INFO, WARN, ERROR.
	LogLevel string `hcl:"log_level" unset:"INFO"`
	// LogFormat is text or json.
	LogFormat string `hcl:"log_format" unset:"text"`
	// LogFile is appended to, and opened again at SIGUSR2.
	LogFile string `hcl:"log_file" unset:"standard output"`
	// LogSourceLocation adds file and line to log lines.
	LogSourceLocation bool `hcl:"log_source_location"`
	// LogSelectors are selectors whose values SPIRE writes to its log.
	LogSelectors []string `hcl:"log_selectors" accepted:"values of selectors are never logged"`

	// TrustBundlePath is a file with the server's authorities, for the first
	// contact. One of trust_bundle_path, trust_bundle_url,
	// trust_bundle_spiffe_workload_api and insecure_bootstrap is required.
	TrustBundlePath string `hcl:"trust_bundle_path"`
	// TrustBundleFormat is the format of that file, or of what the URL gives: pem
	// or spiffe.
	TrustBundleFormat string `hcl:"trust_bundle_format" default:"pem"`
	// TrustBundleURL is where to get that file: an https URL, whose server is
	// verified by the machine's Web PKI roots.
	TrustBundleURL string `hcl:"trust_bundle_url"`
	// TrustBundleUnixSocket is a Unix socket to ask for TrustBundleURL, which
	// is an http URL then; the request says who asks, in its query.
	TrustBundleUnixSocket string `hcl:"trust_bundle_unix_socket"`
	// TrustBundleWorkloadAPI is the Workload API of another agent, of which
	// this node is a workload, such as unix:///run/upstream.sock.
	TrustBundleWorkloadAPI string `hcl:"trust_bundle_spiffe_workload_api"`
	// InsecureBootstrap trusts whoever answers at first contact. Not for
	// production.
	InsecureBootstrap bool `hcl:"insecure_bootstrap"`

	// RebootstrapMode says whether an agent that cannot verify the server
	// any more may go back to what the first contact was verified with: never,
	// auto (only one that can attest again) or always.
	RebootstrapMode string `hcl:"rebootstrap_mode" default:"never"`
	// RebootstrapDelay is for how long it must have been so.
	RebootstrapDelay time.Duration `hcl:"rebootstrap_delay" default:"10m"`

	// JoinToken is the token of the node attestor join_token, which is then used
	// whatever node attestor the section plugins names.
	JoinToken string `hcl:"join_token"`
	// JoinTokenFile holds the join token; exclusive with JoinToken.
	JoinTokenFile string `hcl:"join_token_file"`

	// PersistSVIDs also keeps the workloads' keys and X509-SVIDs in data_dir
	// (mode 0600), so that an agent restarted while the server is away can
	// serve.
	PersistSVIDs bool `hcl:"persist_svids" ours:"true"`
	// X509SVIDCacheMaxSize is how many X509-SVIDs are kept warm.
	X509SVIDCacheMaxSize int `hcl:"x509_svid_cache_max_size" unset:"1000"`
	// JWTSVIDCacheMaxSize is how many JWT-SVIDs are kept.
	JWTSVIDCacheMaxSize int `hcl:"jwt_svid_cache_max_size" unset:"1000"`
	// WorkloadX509SVIDKeyType is the type of the workloads' keys: ec-p256 or
	// rsa-2048.
	WorkloadX509SVIDKeyType string `hcl:"workload_x509_svid_key_type" default:"ec-p256"`
	// AvailabilityTarget is the outage that X509-SVIDs, the agent's and the
	// workloads', are to outlast, at least 24h: they are renewed when it is left
	// of their life. Those that live less than 12h longer are renewed at half of
	// their life, and so are those for which that is sooner.
	AvailabilityTarget time.Duration `hcl:"availability_target" unset:"renewed at half of their life"`
	// AllowUnauthenticatedVerifiers gives bundles to workloads that have no
	// identity.
	AllowUnauthenticatedVerifiers bool `hcl:"allow_unauthenticated_verifiers"`
	// AllowedForeignJWTClaims are the claims that ValidateJWTSVID reports of
	// tokens from other trust domains, beside sub, aud and exp.
	AllowedForeignJWTClaims []string `hcl:"allowed_foreign_jwt_claims"`

	// DisableWorkloadAPI is for agents that serve Envoy's SDS alone.
	DisableWorkloadAPI bool `hcl:"disable_workload_api" refused:"the Workload API is all that this version serves to workloads; remove the key"`
	// DisableSDSAPI switches Envoy's SDS off.
	DisableSDSAPI bool `hcl:"disable_sds_api" accepted:"this version does not serve SDS"`
	// SDS has the names that Envoy asks for.
	SDS *SDS `hcl:"sds" refused:"this version does not serve Envoy's SDS; let a helper such as spiffe-helper write files for Envoy, and remove the section"`
	// AuthorizedDelegates are SPIFFE IDs that may ask for other workloads'
	// SVIDs.
	AuthorizedDelegates []string `hcl:"authorized_delegates" refused:"this version has no Delegated Identity API; let each workload ask for itself and remove the key"`

	// CSI gives pods the directory of SocketPath by a CSI driver.
	CSI *CSI `hcl:"csi" unset:"no driver" ours:"true"`

	// Profiling has the keys profiling_*.
	telemetry.Profiling

	// Experimental is SPIRE's section of what may change.
	Experimental Experimental `hcl:"experimental"`
}

// SDS is the section sds.
type SDS struct {
	// DefaultSVIDName is the name of the workload's X509-SVID.
	DefaultSVIDName string `hcl:"default_svid_name"`
	// DefaultBundleName is the name of the own bundle.
	DefaultBundleName string `hcl:"default_bundle_name"`
	// DefaultAllBundlesName is the name of all bundles.
	DefaultAllBundlesName string `hcl:"default_all_bundles_name"`
	// DisableSPIFFECertValidation is for Envoys without SPIFFE's validator.
	DisableSPIFFECertValidation bool `hcl:"disable_spiffe_cert_validation"`
}

// Experimental is the section experimental.
type Experimental struct {
	// SyncInterval is how often a SPIRE server is polled, which has no push
	// stream; ours is never polled.
	SyncInterval time.Duration `hcl:"sync_interval" unset:"5s"`
	// UseSyncAuthorizedEntries chooses the call that polls.
	UseSyncAuthorizedEntries *bool `hcl:"use_sync_authorized_entries" accepted:"changes are pushed; a SPIRE server is polled by SyncAuthorizedEntries"`
	// JWTSVIDCacheHitTimeout is how long to wait for a new JWT-SVID while an
	// older one could be given.
	JWTSVIDCacheHitTimeout *time.Duration `hcl:"jwt_svid_cache_hit_timeout" accepted:"it is always 3 s"`
	// RequirePQKEM refuses servers whose key exchange is not post-quantum.
	RequirePQKEM bool `hcl:"require_pq_kem"`
	// RateLimit limits how often a workload may ask.
	RateLimit RateLimit `hcl:"ratelimit"`
	// Broker is the SPIFFE Broker API.
	Broker *Broker `hcl:"broker" refused:"this version has no Broker API; let each workload ask for itself and remove the section"`
	// FeatureFlags switch on what SPIRE is still working on.
	FeatureFlags []string `hcl:"feature_flags" refused:"there are no feature flags; remove the key"`
	// NamedPipeName is the Workload API's listener on Windows.
	NamedPipeName string `hcl:"named_pipe_name" refused:"named pipes exist on Windows only; use socket_path"`
	// AdminNamedPipeName is the admin API's listener on Windows.
	AdminNamedPipeName string `hcl:"admin_named_pipe_name" refused:"named pipes exist on Windows only; use admin_socket_path"`
}

// RateLimit is the section experimental.ratelimit: calls a second for each set
// of selectors; 0 is no limit.
type RateLimit struct {
	// FetchX509SVID limits how often the stream is opened.
	FetchX509SVID int `hcl:"fetch_x509_svid" unset:"no limit"`
	// FetchJWTSVID limits calls.
	FetchJWTSVID int `hcl:"fetch_jwt_svid" unset:"no limit"`
	// FetchX509Bundles limits how often the stream is opened.
	FetchX509Bundles int `hcl:"fetch_x509_bundles" unset:"no limit"`
	// FetchJWTBundles limits how often the stream is opened.
	FetchJWTBundles int `hcl:"fetch_jwt_bundles" unset:"no limit"`
	// StreamSecrets limits SDS.
	StreamSecrets int `hcl:"stream_secrets" accepted:"this version does not serve SDS"`
	// FetchSecrets limits SDS.
	FetchSecrets int `hcl:"fetch_secrets" accepted:"this version does not serve SDS"`
}

// Broker is the section experimental.broker.
type Broker struct {
	// SocketPath is a Unix socket.
	SocketPath string `hcl:"socket_path"`
	// BindAddress is host:port.
	BindAddress string `hcl:"bind_address"`
	// Brokers are those who may ask.
	Brokers []struct {
		// ID is the broker's SPIFFE ID.
		ID string `hcl:"id"`
		// AllowedReferenceTypes are the kinds of references it may use.
		AllowedReferenceTypes []struct {
			// TypeURL is the protobuf type, * for any.
			TypeURL string `hcl:"type_url"`
			// AllowOverTCP lets it be used over BindAddress too.
			AllowOverTCP bool `hcl:"allow_over_tcp"`
		} `hcl:"allowed_reference_types"`
	} `hcl:"brokers"`
}

const (
	rebootstrapNever  = "never"
	rebootstrapAuto   = "auto"
	rebootstrapAlways = "always"
	// attestorTimeout bounds one workload attestor's work on one call.
	attestorTimeout = 5 * time.Second
)

// Load reads a configuration file, HCL or JSON, with defaults set. An error is
// about the file as a whole: unknown keys and values of the wrong type are
// reported by Validate, together with all else. The caller may change the Config
// (flags, see [Config.Override]) before that.
func Load(path string, expandEnv bool) (*Config, error) {
	f, err := config.Load(path, expandEnv)
	if err != nil {
		return nil, err
	}
	c := &Config{file: f}
	c.unread = f.Decode(c)
	c.SetDefaults()
	return c, nil
}

// SetDefaults fills in what was left out, as Load does.
func (c *Config) SetDefaults() { config.SetDefaults(c) }

// Override says that a value was set by a flag, which problems with it then
// name: key is such as "agent.server_port", flag such as "-serverPort".
func (c *Config) Override(key, flag string) {
	if c.file != nil {
		c.file.Override(key, flag)
	}
}

// servers are host:port of each server, or of the name that stands for them.
func (s *Section) servers() []string {
	if len(s.ServerAddresses) > 0 {
		return s.ServerAddresses
	}
	return []string{net.JoinHostPort(strings.Trim(s.ServerAddress, "[]"), strconv.Itoa(s.ServerPort))}
}
