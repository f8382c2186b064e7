package server

import (
	"crypto/tls"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/telemetry"
)

// minTTL is the shortest lifetime that a key of the file may ask for; shorter
// ones are over before they are of use.
const minTTL = time.Second

// tlsVersions are the values of tls_min_version.
var tlsVersions = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

// Validate reports every problem of the configuration's text, one a line in the
// order of the file, each with file, line and key. But for plugin_data_file it
// reads no other file; see [Config.Preflight] for these.
func (c *Config) Validate() error {
	s := c.Server.withDefaults()
	_, refused := c.unsupported()
	problems := []error{c.unread, refused}
	report := func(key, format string, args ...any) {
		problems = append(problems, c.file.Errorf(key, format, args...))
	}
	s.required(report)
	s.values(report)
	s.lifetimes(report)
	s.Profiling.Validate(func(key string, err error) { report("server."+key, "%w", err) })
	filled := c.withDefaults()
	filled.Telemetry.Validate(report)
	filled.HealthChecks.Validate(report)
	own := telemetry.Endpoint{Host: s.BindAddress, Port: strconv.Itoa(s.BindPort), Key: "server.bind_port"}
	if c.Listener != nil {
		own = telemetry.Endpoint{}
	}
	telemetry.CheckPorts(report, own, filled.HealthChecks.Endpoint(), filled.Telemetry.Endpoint(), s.Profiling.Endpoint("server"))
	if _, err := c.choose(); err != nil {
		problems = append(problems, err)
	}
	return config.Problems(problems...)
}

// unsupported are the keys that are set and not honoured.
func (c *Config) unsupported() ([]config.Notice, error) {
	return config.Unsupported(c.file, "", c)
}

// reporter takes one problem: the key, and what is wrong with its value.
type reporter = func(key, format string, args ...any)

// required checks the keys that have no default.
func (s Settings) required(report reporter) {
	if s.TrustDomain == "" {
		report("server.trust_domain", "is required, such as \"example.org\"")
	} else if _, err := spiffeid.TrustDomainFromString(s.TrustDomain); err != nil {
		report("server.trust_domain", "%q: %w", s.TrustDomain, err)
	}
	if s.DataDir == "" {
		report("server.data_dir", "is required: name the directory for the store and the keys")
	}
}

// values checks the keys with a small set of values or a syntax.
func (s Settings) values(report reporter) {
	if s.BindPort < 0 || s.BindPort > 65535 {
		report("server.bind_port", "%d is not between 1 and 65535", s.BindPort)
	}
	if _, ok := tlsVersions[s.TLSMinVersion]; !ok {
		report("server.tls_min_version", "%q is not \"1.2\" or \"1.3\"", s.TLSMinVersion)
	}
	if _, err := s.adminIDs(); err != nil {
		report("server.admin_ids", "%w", err)
	}
	if _, err := s.proxies(); err != nil {
		report("server.proxy_protocol_trusted_cidrs", "%w", err)
	}
	if _, err := keys.ParseType(s.CAKeyType); err != nil {
		report("server.ca_key_type", "%w", err)
	}
	if _, err := keys.ParseType(s.JWTKeyType); err != nil && s.JWTKeyType != s.CAKeyType {
		report("server.jwt_key_type", "%w", err)
	}
	if _, err := telemetry.ParseLevel(s.LogLevel); err != nil {
		report("server.log_level", "%w", err)
	}
	switch strings.ToLower(s.LogFormat) {
	case "", "text", "json":
	default:
		report("server.log_format", "%q is not text or json", s.LogFormat)
	}
}

// lifetimes checks the durations.
func (s Settings) lifetimes(report reporter) {
	for _, k := range []struct {
		key string
		ttl time.Duration
	}{
		{"ca_ttl", s.CATTL},
		{"default_x509_svid_ttl", s.DefaultX509SVIDTTL},
		{"default_jwt_svid_ttl", s.DefaultJWTSVIDTTL},
		{"agent_ttl", s.AgentTTL},
	} {
		if k.ttl < minTTL {
			report("server."+k.key, "%v is shorter than %v", k.ttl, minTTL)
		}
	}
	if s.MaxStaleness < minTTL {
		report("server.max_staleness", "%v is shorter than %v", s.MaxStaleness, minTTL)
	}
	if d := *s.DrainTimeout; d < 0 {
		report("server.drain_timeout", "%v is negative; 0s stops without waiting for agents", d)
	}
	if s.PruneAttestedNodesExpiredFor < 0 {
		report("server.prune_attested_nodes_expired_for", "%v is negative", s.PruneAttestedNodesExpiredFor)
	}
}

// adminIDs parses admin_ids. Those of other trust domains, which SPIRE takes by
// their bundles, would never get in: no certificate of theirs does.
func (s Settings) adminIDs() ([]spiffeid.ID, error) {
	own, err := spiffeid.TrustDomainFromString(s.TrustDomain)
	if err != nil {
		own = spiffeid.TrustDomain{} // That has been said.
	}
	out := make([]spiffeid.ID, 0, len(s.AdminIDs))
	for _, text := range s.AdminIDs {
		id, err := spiffeid.FromString(text)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", text, err)
		}
		if !own.IsZero() && !id.MemberOf(own) {
			return nil, fmt.Errorf("%q is not of the trust domain %q: admins of others are not supported in this version; give this one an SVID of this server's, or remove it", text, own.Name())
		}
		out = append(out, id)
	}
	return out, nil
}

// address is bind_address and bind_port as net.Listen takes them.
func (s Settings) address() string {
	return net.JoinHostPort(strings.Trim(s.BindAddress, "[]"), fmt.Sprint(s.BindPort))
}
