package server

import (
	"path/filepath"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/preflight"
	"github.com/credence-id/credence/pkg/publish"
	"github.com/credence-id/credence/pkg/store/bolt"
)

// Names of plugin types in the file.
const (
	typeDataStore       = "DataStore"
	typeKeyManager      = "KeyManager"
	typeNodeAttestor    = "NodeAttestor"
	typeBundlePublisher = "BundlePublisher"
	typeNotifier        = "Notifier"
)

// storeFile is the embedded store's file in data_dir.
const storeFile = "credence.db"

// choice is what the section plugins asks for, checked and not yet opened.
type choice struct {
	store openStore
	// storeFile is the file of the embedded store; empty with another engine.
	storeFile string
	keys      openKeys
	// verifiers are the node attestors in use, by name.
	verifiers map[string]openVerifier
	// targets are where the bundle is published.
	targets []publish.Target
	// foreign is what must not be there.
	foreign foreignData
	// notices are said at the start.
	notices []config.Notice
	// checks look, without changing anything, whether the store and the keys
	// can be opened.
	checks []func() error
}

func (c *choice) check(look func() error) { c.checks = append(c.checks, look) }

// keep chooses the store in the file at path.
func (c *choice) keep(path, dataDir string, wrap func(key, format string, args ...any) error) {
	c.storeFile = path
	c.check(func() error {
		if err := bolt.Check(path); err != nil {
			return wrap("path", "%w", err)
		}
		if err := preflight.Parent(path, dataDir); err != nil {
			return wrap("path", "%w", err)
		}
		return nil
	})
}

// choose reads the section plugins. It reports every problem and opens
// nothing.
func (cfg *Config) choose() (choice, error) {
	s := cfg.Server.withDefaults()
	problems := []error{cfg.Plugins.Check(builtins(), later)}
	var known config.Plugins
	for _, p := range cfg.Plugins {
		switch {
		case !p.Enabled:
		case p.Cmd != "":
			problems = append(problems, p.Errorf("not supported: this version runs no external plugins; remove the section"))
		default:
			known = append(known, p)
		}
	}

	c := choice{foreign: foreignData{dataDir: s.DataDir, store: filepath.Join(s.DataDir, storeFile), report: cfg.file.Errorf}}
	c.check(func() error { return c.foreign.refuse() })
	var err error
	if c.store, err = chooseOne(known, typeDataStore, dataStores, s, &c); err != nil {
		problems = append(problems, err)
	}
	if c.store == nil {
		path := filepath.Join(s.DataDir, storeFile)
		c.store = openBolt(bolt.Config{Path: path})
		c.keep(path, s.DataDir, func(_, format string, args ...any) error {
			return cfg.file.Errorf("plugins.DataStore", format, args...)
		})
	}
	if c.keys, err = chooseOne(known, typeKeyManager, keyManagers, s, &c); err != nil {
		problems = append(problems, err)
	}
	if c.verifiers, err = chooseVerifiers(known, &c); err != nil {
		problems = append(problems, err)
	}
	if c.targets, err = chooseTargets(known, &c); err != nil {
		problems = append(problems, err)
	}
	if c.keys == nil && len(known.OfType(typeKeyManager)) == 0 {
		problems = append(problems, cfg.file.Errorf("plugins.KeyManager", `one is required: "disk" keeps keys over a restart, "memory" does not`))
	}
	return c, config.Problems(problems...)
}

// chooseOne reads the only plugin of a type; zero if there is none.
func chooseOne[T any](ps config.Plugins, kind string, from map[string]func(config.Plugin, Settings, *choice) (T, error), s Settings, c *choice) (T, error) {
	var zero T
	found := ps.OfType(kind)
	switch {
	case len(found) == 0:
		return zero, nil
	case len(found) > 1:
		return zero, found[1].Errorf("only one %s can be used, and %q is configured too; keep one", kind, found[0].Name)
	}
	read, ok := from[found[0].Name]
	if !ok {
		return zero, nil // Plugins.Check said so.
	}
	return read(found[0], s, c)
}

// boltData is the section plugin_data of DataStore "bolt".
//
//credence:plugin_data server DataStore bolt
type boltData struct {
	// Path of the file.
	Path string `hcl:"path" unset:"credence.db in data_dir"`
	// MmapSize is the address space reserved for the file, in bytes. It takes
	// no memory.
	MmapSize int `hcl:"mmap_size" unset:"8589934592 (8 GiB)"`
	// RingBytes bounds the history kept in memory for followers, in bytes.
	RingBytes int `hcl:"ring_bytes" unset:"16777216 (16 MiB)"`
}

func chooseBolt(p config.Plugin, s Settings, c *choice) (openStore, error) {
	d := boltData{Path: filepath.Join(s.DataDir, storeFile)}
	if err := p.Decode(&d); err != nil {
		return nil, err
	}
	cfg := bolt.Config{Path: d.Path, MmapSize: d.MmapSize, RingBytes: d.RingBytes}
	if err := cfg.Validate(); err != nil {
		return nil, p.Errorf("%w", err)
	}
	c.keep(cfg.Path, s.DataDir, p.DataErrorf)
	c.foreign.store = cfg.Path
	return openBolt(cfg), nil
}

// sqlData is the section plugin_data of SPIRE's DataStore "sql".
//
//credence:plugin_data server DataStore sql
type sqlData struct {
	// DatabaseType must be sqlite3, which is the embedded store here; mysql,
	// postgres, aws_mysql and aws_postgres are refused.
	DatabaseType config.Raw `hcl:"database_type"`
	// ConnectionString names SPIRE's database: the server refuses to begin
	// with an empty store while there is one.
	ConnectionString string `hcl:"connection_string"`
	// ROConnectionString is for reading.
	ROConnectionString string `hcl:"ro_connection_string" accepted:"there is no SQL"`
	// RootCAPath has the authorities of the database's server.
	RootCAPath string `hcl:"root_ca_path" accepted:"there is no SQL"`
	// ClientCertPath is for the database's server.
	ClientCertPath string `hcl:"client_cert_path" accepted:"there is no SQL"`
	// ClientKeyPath is for the database's server.
	ClientKeyPath string `hcl:"client_key_path" accepted:"there is no SQL"`
	// ConnMaxLifetime is for how long a connection is used.
	ConnMaxLifetime string `hcl:"conn_max_lifetime" accepted:"there is no SQL"`
	// MaxOpenConns is how many connections there are.
	MaxOpenConns int `hcl:"max_open_conns" accepted:"there is no SQL"`
	// MaxIdleConns is how many of them may wait.
	MaxIdleConns int `hcl:"max_idle_conns" accepted:"there is no SQL"`
	// DisableMigration leaves the database's tables alone.
	DisableMigration bool `hcl:"disable_migration" accepted:"there is no SQL"`
	// LogSQL writes statements to the log.
	LogSQL bool `hcl:"log_sql" accepted:"there is no SQL"`
}

// chooseSQL takes sqlite3 for what it means in SPIRE's files: the store of a
// single server, in a file. It is the embedded store here.
func chooseSQL(p config.Plugin, s Settings, c *choice) (openStore, error) {
	var d sqlData
	if err := p.Decode(&d); err != nil {
		return nil, err
	}
	if kind := d.DatabaseType.Word(); kind != "sqlite3" {
		return nil, p.DataErrorf("database_type", "%q is not supported: this version keeps its data in the embedded store "+
			"(DataStore \"bolt\") and reads no SQL database; %s", kind, importInstead)
	}
	c.notices = append(c.notices, config.Notice{
		Key:    "plugins.DataStore.sql",
		Reason: "sqlite3 means the embedded store (DataStore \"bolt\"); what else is said about SQL is not used",
	})
	c.foreign.store, c.foreign.database = filepath.Join(s.DataDir, storeFile), sqlitePath(d.ConnectionString)
	c.keep(c.foreign.store, s.DataDir, func(_, format string, args ...any) error { return p.Errorf(format, args...) })
	return openBolt(bolt.Config{Path: c.foreign.store}), nil
}
