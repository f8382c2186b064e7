package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/telemetry"
)

// minTTL is the shortest lifetime that a key of the file may ask for; shorter
// ones are over before they are of use.
const minTTL = time.Second

// tlsVersions are the values of tls_min_version.
var tlsVersions = map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

// Validate reports every problem of the configuration, one a line, each with
// the key of the file. It touches no file and no network.
func (c *Config) Validate() error {
	s := c.Server.withDefaults()
	problems := append(s.required(), s.values()...)
	problems = append(problems, s.lifetimes()...)
	problems = append(problems, c.Server.refused()...)
	if _, err := choose(c.Plugins, s); err != nil {
		problems = append(problems, err)
	}
	for section, err := range map[string]error{
		"telemetry":     c.Telemetry.Validate(),
		"health_checks": c.healthProblem(),
	} {
		if err != nil && !strings.HasPrefix(err.Error(), section) {
			err = fmt.Errorf("%s: %w", section, err)
		}
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// healthProblem is nil for a listener that is off, whatever else the section
// says.
func (c *Config) healthProblem() error {
	if !c.HealthChecks.ListenerEnabled {
		return nil
	}
	return c.HealthChecks.Validate()
}

// required checks the keys that have no default.
func (s Settings) required() []error {
	var problems []error
	if s.TrustDomain == "" {
		problems = append(problems, keyError("server.trust_domain", "is required, such as \"example.org\""))
	} else if _, err := spiffeid.TrustDomainFromString(s.TrustDomain); err != nil {
		problems = append(problems, keyError("server.trust_domain", "%q: %w", s.TrustDomain, err))
	}
	if s.DataDir == "" {
		problems = append(problems, keyError("server.data_dir", "is required: name the directory for the store and the keys"))
	}
	return problems
}

// values checks the keys with a small set of values or a syntax.
func (s Settings) values() []error {
	var problems []error
	report := func(key, format string, args ...any) {
		problems = append(problems, keyError("server."+key, format, args...))
	}
	if s.BindPort < 0 || s.BindPort > 65535 {
		report("bind_port", "%d is not between 1 and 65535", s.BindPort)
	}
	if _, ok := tlsVersions[s.TLSMinVersion]; !ok {
		report("tls_min_version", "%q is not \"1.2\" or \"1.3\"", s.TLSMinVersion)
	}
	if _, err := s.adminIDs(); err != nil {
		report("admin_ids", "%w", err)
	}
	if _, err := keys.ParseType(s.CAKeyType); err != nil {
		report("ca_key_type", "%w", err)
	}
	if _, err := keys.ParseType(s.JWTKeyType); err != nil {
		report("jwt_key_type", "%w", err)
	}
	if _, err := telemetry.ParseLevel(s.LogLevel); err != nil {
		report("log_level", "%w", err)
	}
	switch strings.ToLower(s.LogFormat) {
	case "", "text", "json":
	default:
		report("log_format", "%q is not text or json", s.LogFormat)
	}
	return problems
}

// lifetimes checks the durations.
func (s Settings) lifetimes() []error {
	var problems []error
	report := func(key, format string, args ...any) {
		problems = append(problems, keyError("server."+key, format, args...))
	}
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
			report(k.key, "%v is shorter than %v", k.ttl, minTTL)
		}
	}
	if longest := max(s.DefaultX509SVIDTTL, s.AgentTTL); longest >= s.CATTL && s.CATTL >= minTTL {
		report("ca_ttl", "%v is not longer than default_x509_svid_ttl and agent_ttl (%v), which it must outlive", s.CATTL, longest)
	}
	if s.PruneAttestedNodesExpiredFor < 0 {
		report("prune_attested_nodes_expired_for", "%v is negative", s.PruneAttestedNodesExpiredFor)
	}
	return problems
}

// adminIDs parses admin_ids.
func (s Settings) adminIDs() ([]spiffeid.ID, error) {
	out := make([]spiffeid.ID, 0, len(s.AdminIDs))
	for _, text := range s.AdminIDs {
		id, err := spiffeid.FromString(text)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", text, err)
		}
		out = append(out, id)
	}
	return out, nil
}

// address is bind_address and bind_port as net.Listen takes them.
func (s Settings) address() string {
	return net.JoinHostPort(strings.Trim(s.BindAddress, "[]"), fmt.Sprint(s.BindPort))
}
