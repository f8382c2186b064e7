package etcd

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credence-id/credence/pkg/store"
)

// Defaults of Config.
const (
	DefaultPrefix         = "/credence/"
	DefaultDialTimeout    = 10 * time.Second
	DefaultRequestTimeout = 5 * time.Second
	DefaultLockTTL        = 10 * time.Second
	DefaultHistory        = time.Hour

	defaultRingBytes = 16 << 20
)

// Bounds of Config.
const (
	minRequestTimeout = 100 * time.Millisecond
	minLockTTL        = 2 * time.Second
	minHistory        = 5 * time.Minute
	// maxPrefix leaves room for a prefix before each of an Update's keys within
	// what etcd takes as one request.
	maxPrefix = 256
)

// Config says where etcd is and how this process uses it. Endpoints is
// required; the zero value of every other field is its default.
type Config struct {
	// Endpoints are URLs of members' client ports, all https or all http.
	Endpoints []string
	// Prefix of every key (default "/credence/"). It ends with a slash.
	Prefix string
	// CAFile has the authorities of the members' certificates (PEM; default:
	// the system's).
	CAFile string
	// CertFile and KeyFile are the certificate that this client shows (PEM).
	// They are read again for each connection.
	CertFile, KeyFile string
	// Username and Password of etcd's own users (default: none).
	Username, Password string
	// DialTimeout bounds the start: until etcd has answered once (default 10 s).
	DialTimeout time.Duration
	// RequestTimeout is how long etcd may take for one read or one commit
	// before it counts as not available (default 5 s, at least 100 ms).
	RequestTimeout time.Duration
	// LockTTL is how long a lock outlives a holder that died (default 10 s, at
	// least 2 s).
	LockTTL time.Duration
	// History is for how long etcd keeps what was overwritten. One of the
	// processes of this store compacts what is older, which is for the whole
	// of etcd (default 1 h, at least 5 min; negative: never, because somebody
	// else does).
	History time.Duration
	// RingBytes bounds the batches kept for Watch, in bytes (default 16 MiB,
	// at least 4 MiB).
	RingBytes int
	// Existing has Open return ErrNone where there is no store, instead of
	// making one.
	Existing bool
	// Logger receives what happens to the connection (default: none).
	Logger *slog.Logger
	// Registerer receives the store's metrics (default: none).
	Registerer prometheus.Registerer
}

// FieldError is a problem of one field.
type FieldError struct {
	Field string // as in the configuration file
	Err   error
}

func (e *FieldError) Error() string { return e.Field + " " + e.Err.Error() }

// Unwrap returns what is wrong.
func (e *FieldError) Unwrap() error { return e.Err }

// Validate says which fields cannot be used: a joined error of a [FieldError]
// for each.
func (c *Config) Validate() error {
	var problems []error
	report := func(field, format string, args ...any) {
		problems = append(problems, &FieldError{field, fmt.Errorf(format, args...)})
	}
	c.checkEndpoints(report)
	if c.Prefix != "" && (!strings.HasSuffix(c.Prefix, "/") || len(c.Prefix) > maxPrefix) {
		report("prefix", "is %q: it must end with / and have at most %d bytes", c.Prefix, maxPrefix)
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		report("cert_file", "and key_file belong together: set both or none")
	}
	if (c.Username == "") != (c.Password == "") {
		report("username", "needs a password, and a password needs it: set both or none")
	}
	for _, d := range []struct {
		field      string
		value, min time.Duration
	}{
		{"dial_timeout", c.DialTimeout, minRequestTimeout},
		{"request_timeout", c.RequestTimeout, minRequestTimeout},
		{"lock_ttl", c.LockTTL, minLockTTL},
	} {
		if d.value != 0 && d.value < d.min {
			report(d.field, "is %v: the least is %v", d.value, d.min)
		}
	}
	if c.History > 0 && c.History < minHistory {
		report("history", "is %v: the least is %v; a reader needs the revision it began at for as long as it reads", c.History, minHistory)
	}
	if c.RingBytes < 0 || c.RingBytes > 0 && c.RingBytes < 4*store.MaxBytes {
		report("ring_bytes", "is %d: the least is %d", c.RingBytes, 4*store.MaxBytes)
	}
	return errors.Join(problems...)
}

func (c *Config) checkEndpoints(report func(field, format string, args ...any)) {
	if len(c.Endpoints) == 0 {
		report("endpoints", `is empty: name the client URLs of the etcd members, such as "https://etcd-1:2379"`)
		return
	}
	secure := 0
	for _, text := range c.Endpoints {
		u, err := url.Parse(text)
		switch {
		case strings.Contains(text, "@"): // It is not shown: it may have a password.
			report("endpoints", "has a URL with a user: use username and password")
			continue
		case err != nil:
			report("endpoints", "has %q: it is no URL", text)
			continue
		case u.Scheme != "http" && u.Scheme != "https":
			report("endpoints", "has %q: a URL begins with https:// or http://", text)
			continue
		}
		if _, port, err := net.SplitHostPort(u.Host); err != nil || port == "" || u.Path != "" || u.RawQuery != "" {
			report("endpoints", "has %q: it must be scheme, host and port alone, such as https://etcd-1:2379", text)
		}
		if u.Scheme == "https" {
			secure++
		}
	}
	switch {
	case secure != 0 && secure != len(c.Endpoints):
		report("endpoints", "has https and http: all members must be reached in one way")
	case secure == 0 && c.CAFile+c.CertFile != "":
		report("endpoints", "are http, and TLS files are configured: write https://, or remove the files")
	}
}

// withDefaults returns a copy of c whose zero fields are filled in.
func (c Config) withDefaults() Config {
	fill := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	fill(&c.DialTimeout, DefaultDialTimeout)
	fill(&c.RequestTimeout, DefaultRequestTimeout)
	fill(&c.LockTTL, DefaultLockTTL)
	fill(&c.History, DefaultHistory)
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	if c.RingBytes == 0 {
		c.RingBytes = defaultRingBytes
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}
