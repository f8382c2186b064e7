package server

import (
	"cmp"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/telemetry"
)

// Config is a server's configuration file, with what the process adds to it.
// Field comments name the default; durations are Go's ("1h", "90s") in the
// file.
type Config struct {
	Server       Settings               `hcl:"server"`
	Plugins      config.Plugins         `hcl:"plugins"`
	Telemetry    telemetry.Config       `hcl:"telemetry"`
	HealthChecks telemetry.HealthConfig `hcl:"health_checks"`

	// Log is what the server logs to, and whose level its API changes; nil:
	// what the log_* keys say. The caller closes it.
	Log *telemetry.Log
	// Logger replaces Log by one whose level is not the server's to change
	// (tests).
	Logger *slog.Logger
	// Listener replaces bind_address and bind_port (tests, dev mode). Run
	// closes it.
	Listener net.Listener
	// AdminListener replaces socket_path (tests). Run closes it.
	AdminListener net.Listener
	// OnReady, if set, is called once, when both listeners serve.
	OnReady func(Bound)
}

// Bound says where a running server can be reached.
type Bound struct {
	// Address of the TLS listener.
	Address net.Addr
	// Admin is the local admin's listener.
	Admin net.Addr
}

// Settings is the section server of the file.
type Settings struct {
	// TrustDomain is the name of the trust domain, without or with spiffe://;
	// required.
	TrustDomain string `hcl:"trust_domain"`
	// DataDir holds the store, the keys and the server's ID; required. It is
	// made, readable by the owner alone, when it is not there.
	DataDir string `hcl:"data_dir"`
	// BindAddress is the IP address of the TLS listener; default 0.0.0.0.
	BindAddress string `hcl:"bind_address"`
	// BindPort is its TCP port; default 8081.
	BindPort int `hcl:"bind_port"`
	// SocketPath is the local admin's Unix socket; default as in
	// cli.Persona.ServerSocket: /run/credence/server/private/api.sock.
	SocketPath string `hcl:"socket_path"`
	// TLSMinVersion is the least TLS version of the TLS listener, "1.2" or
	// "1.3"; default 1.3.
	TLSMinVersion string `hcl:"tls_min_version"`

	// AdminIDs are SPIFFE IDs that are admins without an entry; default none.
	AdminIDs []string `hcl:"admin_ids"`
	// AuditLogEnabled writes a record of every decision; default false.
	AuditLogEnabled bool `hcl:"audit_log_enabled"`

	// CATTL is the lifetime of the X.509 authority and of JWT keys; default
	// 24h.
	CATTL time.Duration `hcl:"ca_ttl"`
	// CAKeyType is ec-p256, ec-p384, rsa-2048 or rsa-4096; default ec-p256.
	CAKeyType string `hcl:"ca_key_type"`
	// JWTKeyType is the key type of JWT authorities; default ca_key_type.
	JWTKeyType string `hcl:"jwt_key_type"`
	// CASubject is the subject of CA certificates; default C=US, O=SPIFFE.
	CASubject *CASubject `hcl:"ca_subject"`
	// DefaultX509SVIDTTL is for entries without their own; default 1h.
	DefaultX509SVIDTTL time.Duration `hcl:"default_x509_svid_ttl"`
	// DefaultJWTSVIDTTL is for entries without their own; default 5m.
	DefaultJWTSVIDTTL time.Duration `hcl:"default_jwt_svid_ttl"`
	// AgentTTL is the lifetime of agents' SVIDs; default default_x509_svid_ttl.
	AgentTTL time.Duration `hcl:"agent_ttl"`
	// JWTIssuer is the claim iss of JWT-SVIDs; default none.
	JWTIssuer string `hcl:"jwt_issuer"`

	// PruneAttestedNodesExpiredFor removes agents whose SVIDs expired longer
	// ago than this; default 0, which keeps them.
	PruneAttestedNodesExpiredFor time.Duration `hcl:"prune_attested_nodes_expired_for"`
	// PruneTOFUNodes removes, by the same rule, agents that cannot attest
	// again; default false.
	PruneTOFUNodes bool `hcl:"prune_tofu_nodes"`
	// PruneBatchSize is accepted: pruning is always done in small transactions.
	PruneBatchSize int `hcl:"prune_attested_nodes_batch_size"`

	// LogLevel is DEBUG, INFO, WARN or ERROR; default INFO.
	LogLevel string `hcl:"log_level"`
	// LogFormat is text or json; default text.
	LogFormat string `hcl:"log_format"`
	// LogFile is appended to, and opened again at SIGUSR2; default standard
	// output.
	LogFile string `hcl:"log_file"`
	// LogSourceLocation adds file and line to log lines; default false.
	LogSourceLocation bool `hcl:"log_source_location"`

	// RateLimit is SPIRE's section; see [RateLimit].
	RateLimit RateLimit `hcl:"ratelimit"`
	// Experimental is SPIRE's section; see [Experimental].
	Experimental Experimental `hcl:"experimental"`

	// Keys of SPIRE that this version refuses, see refused.go.
	Federation               config.Raw `hcl:"federation"`
	DisableJWTSVIDs          bool       `hcl:"disable_jwt_svids"`
	ProxyProtocolCIDRs       []string   `hcl:"proxy_protocol_trusted_cidrs"`
	ProfilingEnabled         bool       `hcl:"profiling_enabled"`
	ProfilingPort            int        `hcl:"profiling_port"`
	ProfilingFreq            int        `hcl:"profiling_freq"`
	ProfilingNames           []string   `hcl:"profiling_names"`
	MaxAttestedNodeStaleness *string    `hcl:"max_attested_node_info_staleness"`
}

// CASubject is the section ca_subject.
type CASubject struct {
	Country      []string `hcl:"country"`
	Organization []string `hcl:"organization"`
	CommonName   string   `hcl:"common_name"`
}

// RateLimit is the section ratelimit. This version enforces neither limit and
// says so at the start when one is asked for.
type RateLimit struct {
	Attestation *bool `hcl:"attestation"`
	Signing     *bool `hcl:"signing"`
}

// Experimental is the section experimental. What tunes SPIRE's polling has
// nothing to tune here and is accepted with a notice.
type Experimental struct {
	// RequirePQKEM makes the TLS listener refuse key exchanges that are not
	// post-quantum; default false.
	RequirePQKEM bool `hcl:"require_pq_kem"`

	CacheReloadInterval     string `hcl:"cache_reload_interval"`
	FullCacheReloadInterval string `hcl:"full_cache_reload_interval"`
	EventsBasedCache        bool   `hcl:"events_based_cache"`
	PruneEventsOlderThan    string `hcl:"prune_events_older_than"`
	EventTimeout            string `hcl:"event_timeout"`
	SQLTransactionTimeout   string `hcl:"sql_transaction_timeout"`

	AgentSPIFFEIDAsSelector bool       `hcl:"agent_spiffe_id_as_selector"`
	AuthOPAPolicyEngine     config.Raw `hcl:"auth_opa_policy_engine"`
	WITKeyType              string     `hcl:"wit_key_type"`
	WITIssuer               string     `hcl:"wit_issuer"`
	FeatureFlags            []string   `hcl:"feature_flags"`
	NamedPipeName           string     `hcl:"named_pipe_name"`
}

// Defaults of Settings.
const (
	defaultBindAddress = "0.0.0.0"
	defaultBindPort    = 8081
	defaultX509SVIDTTL = time.Hour
	defaultJWTSVIDTTL  = 5 * time.Minute
	defaultCATTL       = 24 * time.Hour
	defaultKeyType     = "ec-p256"
	defaultTLSMin      = "1.3"
)

// Load reads the file at path; expandEnv replaces ${VAR} by the environment.
// Unknown keys and values of the wrong type are reported together, with file
// and line. The caller may change the Config (flags) before [New] validates it.
func Load(path string, expandEnv bool) (*Config, error) {
	f, err := config.Load(path, expandEnv)
	if err != nil {
		return nil, err
	}
	var c Config
	if err := f.Decode(&c); err != nil {
		return nil, err
	}
	return &c, nil
}

// withDefaults returns a copy of s whose unset fields are filled in.
func (s Settings) withDefaults() Settings {
	s.BindAddress = cmp.Or(s.BindAddress, defaultBindAddress)
	s.BindPort = cmp.Or(s.BindPort, defaultBindPort)
	s.SocketPath = cmp.Or(s.SocketPath, cli.Self().ServerSocket())
	s.TLSMinVersion = cmp.Or(s.TLSMinVersion, defaultTLSMin)
	s.CATTL = cmp.Or(s.CATTL, defaultCATTL)
	s.CAKeyType = cmp.Or(s.CAKeyType, defaultKeyType)
	s.JWTKeyType = cmp.Or(s.JWTKeyType, s.CAKeyType)
	s.DefaultX509SVIDTTL = cmp.Or(s.DefaultX509SVIDTTL, defaultX509SVIDTTL)
	s.DefaultJWTSVIDTTL = cmp.Or(s.DefaultJWTSVIDTTL, defaultJWTSVIDTTL)
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

// keyError is a problem with the value of a key of the file.
func keyError(key, format string, args ...any) error {
	return fmt.Errorf("%s: %w", key, fmt.Errorf(format, args...))
}
