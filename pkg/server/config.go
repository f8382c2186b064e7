package server

import (
	"cmp"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/telemetry"
)

// Config is a server's configuration file, with what the process adds to it.
// Durations are Go's ("1h", "90s") in the file.
type Config struct {
	// Server has the server's own keys.
	Server Settings `hcl:"server"`
	// Plugins are the exchangeable parts.
	Plugins config.Plugins `hcl:"plugins"`
	// Telemetry shows metrics.
	Telemetry telemetry.Config `hcl:"telemetry"`
	// HealthChecks answers whether the server is well.
	HealthChecks telemetry.HealthConfig `hcl:"health_checks"`

	// Log is what the server logs to, and whose level its API changes; nil:
	// what the log_* keys say. The caller closes it.
	Log *telemetry.Log
	// Logger replaces Log by one whose level is not the server's to change
	// (tests).
	Logger *slog.Logger
	// Store replaces what DataStore opens (tests). Run does not close it, and
	// several servers may have it.
	Store store.Store
	// Listener replaces bind_address and bind_port (tests, dev mode). Run
	// closes it.
	Listener net.Listener
	// AdminListener replaces socket_path (tests). Run closes it.
	AdminListener net.Listener
	// OnReady, if set, is called once, when both listeners serve.
	OnReady func(Bound)

	// file is where the rest was read from, nil if from nowhere.
	file *config.File
	// unread are the keys of the file that could not be read.
	unread error
}

// Bound says where a running server can be reached.
type Bound struct {
	// Address of the TLS listener.
	Address net.Addr
	// Admin is the local admin's listener.
	Admin net.Addr
}

// Settings is the section server of the file. The tag default is what a field
// has when the file does not set it; unset says so in words. Keys tagged refused
// or accepted are SPIRE's, without an effect here: see [config.Unsupported].
// docs/configuration.md is made from these structs.
type Settings struct {
	// TrustDomain is the name of the trust domain, without or with spiffe://;
	// required.
	TrustDomain string `hcl:"trust_domain"`
	// DataDir holds the store, the keys and the server's ID; required. It is
	// made, readable by the owner alone, when it is not there.
	DataDir string `hcl:"data_dir"`
	// BindAddress is the IP address or DNS name of the TLS listener.
	BindAddress string `hcl:"bind_address" default:"0.0.0.0"`
	// BindPort is the TCP port of the TLS listener.
	BindPort int `hcl:"bind_port" default:"8081"`
	// SocketPath is the local admin's Unix socket.
	SocketPath string `hcl:"socket_path" unset:"/run/credence/server/private/api.sock; called as spire-server: /tmp/spire-server/private/api.sock"`
	// TLSMinVersion is the least TLS version of the TLS listener, 1.2 or 1.3.
	TLSMinVersion string `hcl:"tls_min_version" default:"1.3" ours:"true"`

	// AdminIDs are SPIFFE IDs of this trust domain that are admins without an
	// entry.
	AdminIDs []string `hcl:"admin_ids"`
	// AuditLogEnabled writes a record of every decision.
	AuditLogEnabled bool `hcl:"audit_log_enabled"`

	// DrainTimeout is for how long a server that is told to stop waits for agents
	// that have another server to go there; 0s: not at all. Agents without another
	// one are not waited for.
	DrainTimeout *time.Duration `hcl:"drain_timeout" default:"10s" ours:"true"`

	// CATTL is the lifetime of the X.509 authority and of JWT keys.
	CATTL time.Duration `hcl:"ca_ttl" default:"24h"`
	// CAKeyType is the key type of the X.509 authority: ec-p256, ec-p384,
	// rsa-2048 or rsa-4096.
	CAKeyType string `hcl:"ca_key_type" default:"ec-p256"`
	// JWTKeyType is the key type of JWT authorities, one of those.
	JWTKeyType string `hcl:"jwt_key_type" unset:"as ca_key_type"`
	// CASubject is the subject of CA certificates.
	CASubject *CASubject `hcl:"ca_subject" unset:"C=US, O=SPIFFE"`
	// DefaultX509SVIDTTL is the lifetime of X509-SVIDs whose entry has none.
	DefaultX509SVIDTTL time.Duration `hcl:"default_x509_svid_ttl" default:"1h"`
	// DefaultJWTSVIDTTL is the lifetime of JWT-SVIDs whose entry has none.
	DefaultJWTSVIDTTL time.Duration `hcl:"default_jwt_svid_ttl" default:"5m"`
	// AgentTTL is the lifetime of agents' SVIDs.
	AgentTTL time.Duration `hcl:"agent_ttl" unset:"as default_x509_svid_ttl"`
	// JWTIssuer is the claim iss of JWT-SVIDs.
	JWTIssuer string `hcl:"jwt_issuer"`
	// DisableJWTSVIDs is for trust domains without JWT-SVIDs: the server makes no
	// JWT authority and refuses to sign tokens.
	DisableJWTSVIDs bool `hcl:"disable_jwt_svids"`

	// PruneAttestedNodesExpiredFor removes agents whose SVIDs expired longer
	// ago than this. Banned agents are kept.
	PruneAttestedNodesExpiredFor time.Duration `hcl:"prune_attested_nodes_expired_for" unset:"they are kept"`
	// PruneTOFUNodes removes, by the same rule, agents that cannot attest
	// again.
	PruneTOFUNodes bool `hcl:"prune_tofu_nodes"`
	// PruneBatchSize is how many agents SPIRE prunes at a time.
	PruneBatchSize int `hcl:"prune_attested_nodes_batch_size" accepted:"pruning is done in small transactions"`
	// MaxStaleness is for how long a server that is cut off from a store which
	// other processes keep goes on to issue: it cannot know who was banned
	// meanwhile. Least 1s.
	MaxStaleness time.Duration `hcl:"max_staleness" default:"5m" ours:"true"`
	// MaxAttestedNodeStaleness is for how long SPIRE trusts what it has cached
	// about an agent.
	MaxAttestedNodeStaleness *time.Duration `hcl:"max_attested_node_info_staleness" accepted:"there is no cache to reload: changes are pushed"`

	// LogLevel is DEBUG, INFO, WARN or ERROR.
	LogLevel string `hcl:"log_level" unset:"INFO"`
	// LogFormat is text or json.
	LogFormat string `hcl:"log_format" unset:"text"`
	// LogFile is appended to, and opened again at SIGUSR2.
	LogFile string `hcl:"log_file" unset:"standard output"`
	// LogSourceLocation adds file and line to log lines.
	LogSourceLocation bool `hcl:"log_source_location"`

	// Profiling has the keys profiling_*.
	telemetry.Profiling

	// RateLimit limits how often a client may ask.
	RateLimit RateLimit `hcl:"ratelimit"`
	// ProxyProtocolCIDRs are the networks of load balancers whose PROXY protocol
	// headers, v1 or v2, name the source of a connection. Others that send one
	// are refused.
	ProxyProtocolCIDRs []string `hcl:"proxy_protocol_trusted_cidrs" unset:"nobody may send a header"`
	// Federation serves our bundle, and fetches those of others.
	Federation *Federation `hcl:"federation" refused:"this version neither serves nor fetches bundles of other trust domains; remove the section, and exchange bundles with 'bundle show' and 'bundle set'"`
	// Experimental is SPIRE's section of what may change.
	Experimental Experimental `hcl:"experimental"`
}

// CASubject is the section ca_subject.
type CASubject struct {
	// Country is C, such as US.
	Country []string `hcl:"country"`
	// Organization is O.
	Organization []string `hcl:"organization"`
	// CommonName is CN.
	CommonName string `hcl:"common_name"`
}

// RateLimit is the section ratelimit; docs/limits.md has the numbers.
type RateLimit struct {
	// Attestation limits attestations to 1 a second for each source address.
	Attestation *bool `hcl:"attestation" unset:"true"`
	// Signing limits what is signed to 500 a second for each caller: X.509
	// certificates, JWT-SVIDs and WIT-SVIDs apart.
	Signing *bool `hcl:"signing" unset:"true"`
}

// Federation is the section federation.
type Federation struct {
	// BundleEndpoint is where others fetch our bundle.
	BundleEndpoint *BundleEndpoint `hcl:"bundle_endpoint"`
	// FederatesWith says, by trust domain, where we fetch the bundles of others.
	FederatesWith map[string]FederatesWith `hcl:"federates_with"`
}

// BundleEndpoint is the section federation.bundle_endpoint.
type BundleEndpoint struct {
	// Address is the IP address to listen on.
	Address string `hcl:"address"`
	// Port is the TCP port to listen on.
	Port int `hcl:"port"`
	// RefreshHint is how often others should fetch the bundle.
	RefreshHint time.Duration `hcl:"refresh_hint"`
	// ACME is the older place of profile.https_web.acme.
	ACME *ACME `hcl:"acme"`
	// Profile is https_spiffe or https_web: how the endpoint proves who it is.
	Profile map[string]EndpointProfile `hcl:"profile"`
}

// EndpointProfile is the section federation.bundle_endpoint.profile.
type EndpointProfile struct {
	// ACME gets the endpoint's certificate.
	ACME *ACME `hcl:"acme"`
	// ServingCert is the endpoint's certificate in files.
	ServingCert *ServingCert `hcl:"serving_cert_file"`
}

// ACME is the section acme.
type ACME struct {
	// DirectoryURL is the URL of the ACME server.
	DirectoryURL string `hcl:"directory_url"`
	// DomainName is the name that the certificate is for.
	DomainName string `hcl:"domain_name"`
	// Email is whom to tell about problems.
	Email string `hcl:"email"`
	// ToSAccepted accepts the ACME server's terms of service.
	ToSAccepted bool `hcl:"tos_accepted"`
}

// ServingCert is the section serving_cert_file.
type ServingCert struct {
	// CertFilePath is a PEM file.
	CertFilePath string `hcl:"cert_file_path"`
	// KeyFilePath is a PEM file.
	KeyFilePath string `hcl:"key_file_path"`
	// FileSyncInterval is how often the files are read again.
	FileSyncInterval time.Duration `hcl:"file_sync_interval"`
}

// FederatesWith is the section federation.federates_with.
type FederatesWith struct {
	// BundleEndpointURL is where to fetch the bundle.
	BundleEndpointURL string `hcl:"bundle_endpoint_url"`
	// BundleEndpointProfile is https_spiffe or https_web: how the other proves
	// who it is.
	BundleEndpointProfile map[string]FetchProfile `hcl:"bundle_endpoint_profile"`
}

// FetchProfile is the section bundle_endpoint_profile.
type FetchProfile struct {
	// EndpointSPIFFEID is whom https_spiffe expects to answer.
	EndpointSPIFFEID string `hcl:"endpoint_spiffe_id"`
}

// Experimental is the section experimental. What tunes SPIRE's polling has
// nothing to tune here and is accepted with a notice.
type Experimental struct {
	// RequirePQKEM makes the TLS listener refuse key exchanges that are not
	// post-quantum.
	RequirePQKEM bool `hcl:"require_pq_kem"`

	// CacheReloadInterval is how often SPIRE reads changes of entries.
	CacheReloadInterval *time.Duration `hcl:"cache_reload_interval" accepted:"there is no cache to reload: changes are pushed"`
	// FullCacheReloadInterval is how often SPIRE reads all entries.
	FullCacheReloadInterval *time.Duration `hcl:"full_cache_reload_interval" accepted:"there is no cache to reload: changes are pushed"`
	// EventsBasedCache makes SPIRE read changes from a table of events.
	EventsBasedCache bool `hcl:"events_based_cache" accepted:"there is no cache to reload: changes are pushed"`
	// PruneEventsOlderThan is when SPIRE deletes from that table.
	PruneEventsOlderThan *time.Duration `hcl:"prune_events_older_than" accepted:"there is no table of events"`
	// EventTimeout is how long SPIRE waits for gaps in that table.
	EventTimeout *time.Duration `hcl:"event_timeout" accepted:"there is no table of events"`
	// SQLTransactionTimeout is the older name of event_timeout.
	SQLTransactionTimeout *time.Duration `hcl:"sql_transaction_timeout" accepted:"there is no SQL"`

	// AgentSPIFFEIDAsSelector lets node aliases name agents.
	AgentSPIFFEIDAsSelector bool `hcl:"agent_spiffe_id_as_selector" refused:"node aliases match attested selectors only; use entries with the agent as parent and remove the key"`
	// AuthOPAPolicyEngine decides who may call what.
	AuthOPAPolicyEngine *OPAPolicyEngine `hcl:"auth_opa_policy_engine" refused:"who may call what is fixed; grant rights by entries (admin, downstream) or admin_ids and remove the section"`
	// WITKeyType is the key type of WIT authorities.
	WITKeyType string `hcl:"wit_key_type" refused:"this version issues no WIT-SVIDs; remove the key"`
	// WITIssuer is the claim iss of WIT-SVIDs.
	WITIssuer string `hcl:"wit_issuer" refused:"this version issues no WIT-SVIDs; remove the key"`
	// FeatureFlags switch on what SPIRE is still working on.
	FeatureFlags []string `hcl:"feature_flags" refused:"there are no feature flags; remove the key"`
	// NamedPipeName is the local admin's listener on Windows.
	NamedPipeName string `hcl:"named_pipe_name" refused:"named pipes exist on Windows only; use socket_path"`
}

// OPAPolicyEngine is the section auth_opa_policy_engine.
type OPAPolicyEngine struct {
	// Local has the policy in files.
	Local *struct {
		// RegoPath is the policy.
		RegoPath string `hcl:"rego_path"`
		// PolicyDataPath is its data.
		PolicyDataPath string `hcl:"policy_data_path"`
	} `hcl:"local"`
}

// Load reads the file at path; expandEnv replaces ${VAR} by the environment. An
// error is about the file as a whole: unknown keys and values of the wrong type
// are reported by Validate, together with all else. The caller may change the
// Config (flags, see [Config.Override]) before that.
func Load(path string, expandEnv bool) (*Config, error) {
	f, err := config.Load(path, expandEnv)
	if err != nil {
		return nil, err
	}
	c := &Config{file: f}
	c.unread = f.Decode(c)
	return c, nil
}

// Override says that a value was set by a flag, which problems with it then
// name: key is such as "server.bind_port", flag such as "-serverPort".
func (c *Config) Override(key, flag string) {
	if c.file != nil {
		c.file.Override(key, flag)
	}
}

// withDefaults returns a copy of c whose unset fields are filled in.
func (c Config) withDefaults() Config {
	config.SetDefaults(&c)
	c.Server = c.Server.withDefaults()
	return c
}

// withDefaults returns a copy of s whose unset fields are filled in.
func (s Settings) withDefaults() Settings {
	config.SetDefaults(&s)
	s.SocketPath = cmp.Or(s.SocketPath, cli.Self().ServerSocket())
	s.JWTKeyType = cmp.Or(s.JWTKeyType, s.CAKeyType)
	s.AgentTTL = cmp.Or(s.AgentTTL, s.DefaultX509SVIDTTL)
	if s.CASubject == nil || s.CASubject.empty() {
		s.CASubject = &CASubject{Country: []string{"US"}, Organization: []string{"SPIFFE"}}
	}
	return s
}

func (s *CASubject) empty() bool {
	return s.CommonName == "" && len(s.Country) == 0 && len(s.Organization) == 0
}

// logConfig is what the log_* keys say.
func (s Settings) logConfig() telemetry.LogConfig {
	return telemetry.LogConfig{
		Level:     s.LogLevel,
		Format:    s.LogFormat,
		File:      s.LogFile,
		AddSource: s.LogSourceLocation,
	}
}

// keyError is a problem with the value of a key of the file, found while running.
func keyError(key, format string, args ...any) error {
	return fmt.Errorf("%s: %w", key, fmt.Errorf(format, args...))
}
