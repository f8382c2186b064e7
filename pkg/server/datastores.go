package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/dump"
	"github.com/credence-id/credence/pkg/store/etcd"
)

// etcdData is the section plugin_data of DataStore "etcd".
//
//credence:plugin_data server DataStore etcd
type etcdData struct {
	// Endpoints are the client URLs of the etcd members, all https or all http.
	// Required.
	Endpoints []string `hcl:"endpoints"`
	// Prefix of every key in etcd. Servers with the same etcd and prefix are
	// one. It ends with a slash.
	Prefix string `hcl:"prefix" default:"/credence/"`
	// CAFile has the authorities of the members' certificates, in PEM.
	CAFile string `hcl:"ca_file" unset:"the system's authorities"`
	// CertFile is the certificate that this server shows to etcd, in PEM. It is
	// read again for each connection.
	CertFile string `hcl:"cert_file"`
	// KeyFile is its private key, in PEM.
	KeyFile string `hcl:"key_file"`
	// Username of a user of etcd.
	Username string `hcl:"username"`
	// Password of that user. Rather name a file.
	Password string `hcl:"password"`
	// PasswordFile holds the password; a newline at its end does not count.
	PasswordFile string `hcl:"password_file"`
	// DialTimeout is how long the start waits for etcd.
	DialTimeout time.Duration `hcl:"dial_timeout" default:"10s"`
	// RequestTimeout is how long one read or one commit may take.
	RequestTimeout time.Duration `hcl:"request_timeout" default:"5s"`
	// LockTTL is how long work that is done once for all servers stays with one
	// that died.
	LockTTL time.Duration `hcl:"lock_ttl" default:"10s"`
	// History is for how long etcd keeps what was overwritten; one of the
	// servers compacts what is older, which is for the whole of etcd. "off" if
	// somebody else does.
	History string `hcl:"history" default:"1h"`
	// RingBytes bounds the history kept in memory for followers, in bytes.
	RingBytes int `hcl:"ring_bytes" unset:"16777216 (16 MiB)"`
}

func chooseEtcd(p config.Plugin, s Settings, c *choice) (openStore, error) {
	var d etcdData
	if err := p.Decode(&d); err != nil {
		return nil, err
	}
	config.SetDefaults(&d)
	cfg, err := d.config(p)
	if err := config.Problems(err, wrapFields(p, cfg.Validate())); err != nil {
		return nil, err
	}
	c.check(func() error {
		checked := cfg
		err := d.readPassword(p, &checked)
		return config.Problems(err, wrapFields(p, etcd.Check(checked)))
	})
	// There is no file of the store; who has run here before has an ID.
	c.foreign.store = filepath.Join(s.DataDir, serverIDFile)
	return func(ctx context.Context, env storeEnv) (store.Store, error) {
		if err := d.readPassword(p, &cfg); err != nil {
			return nil, err
		}
		cfg.Logger, cfg.Registerer, cfg.Existing = env.log, env.reg, env.existing
		s, err := etcd.Open(ctx, cfg)
		if errors.Is(err, etcd.ErrNone) {
			return nil, p.Errorf("%w: %w", ErrNoStore, err)
		}
		if err != nil {
			return nil, wrapFields(p, err)
		}
		return s, nil
	}, nil
}

// config is the engine's configuration, without a password from a file.
func (d *etcdData) config(p config.Plugin) (etcd.Config, error) {
	cfg := etcd.Config{
		Endpoints: d.Endpoints, Prefix: d.Prefix, CAFile: d.CAFile, CertFile: d.CertFile, KeyFile: d.KeyFile,
		Username: d.Username, Password: d.Password, DialTimeout: d.DialTimeout, RequestTimeout: d.RequestTimeout,
		LockTTL: d.LockTTL, RingBytes: d.RingBytes, History: -1,
	}
	if d.PasswordFile != "" {
		if d.Password != "" {
			return cfg, p.DataErrorf("password", "and password_file are both set: keep the file")
		}
		cfg.Password = "of a file"
	}
	if d.History == "off" {
		return cfg, nil
	}
	history, err := time.ParseDuration(d.History)
	if err != nil || history <= 0 {
		return cfg, p.DataErrorf("history", `%q is neither a duration, such as "1h", nor "off"`, d.History)
	}
	cfg.History = history
	return cfg, nil
}

// readPassword reads the password's file, if there is one.
func (d *etcdData) readPassword(p config.Plugin, cfg *etcd.Config) error {
	if d.PasswordFile == "" {
		return nil
	}
	text, err := os.ReadFile(d.PasswordFile)
	if err != nil {
		return p.DataErrorf("password_file", "%w", err)
	}
	password := strings.TrimRight(string(text), "\r\n")
	if password == "" {
		return p.DataErrorf("password_file", "%s is empty: write the password of user %q into it", d.PasswordFile, d.Username)
	}
	cfg.Password = password
	return nil
}

// wrapFields gives the problems of an engine's configuration their lines.
func wrapFields(p config.Plugin, err error) error {
	if err == nil {
		return nil
	}
	list := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		list = joined.Unwrap()
	}
	problems := make([]error, 0, len(list))
	for _, err := range list {
		if field, ok := errors.AsType[*etcd.FieldError](err); ok {
			problems = append(problems, p.DataErrorf(field.Field, "%w", field.Err))
		} else {
			problems = append(problems, p.Errorf("%w", err))
		}
	}
	return config.Problems(problems...)
}

// openWhole opens the store and refuses one that a restore has not finished to
// fill.
func (c *choice) openWhole(ctx context.Context, env storeEnv) (store.Store, error) {
	s, err := c.store(ctx, env)
	if err != nil {
		return nil, err
	}
	if err := dump.CheckWhole(ctx, s); err != nil {
		return nil, errors.Join(keyError("plugins.DataStore", "%w", err), s.Close())
	}
	return s, nil
}
