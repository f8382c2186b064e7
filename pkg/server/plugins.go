package server

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
)

// Names of plugin types in the file.
const (
	typeDataStore    = "DataStore"
	typeKeyManager   = "KeyManager"
	typeNodeAttestor = "NodeAttestor"
)

// storeFile is the embedded store's file in data_dir.
const storeFile = "credence.db"

// choice is what the section plugins asks for, checked and not yet opened.
type choice struct {
	store openStore
	keys  openKeys
	// verifiers are the node attestors in use, by name.
	verifiers map[string]openVerifier
	// notices are said at the start.
	notices []config.Notice
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

	var c choice
	var err error
	if c.store, err = chooseOne(known, typeDataStore, dataStores, s, &c); err != nil {
		problems = append(problems, err)
	}
	if c.store == nil {
		c.store = openBolt(bolt.Config{Path: filepath.Join(s.DataDir, storeFile)})
	}
	if c.keys, err = chooseOne(known, typeKeyManager, keyManagers, s, &c); err != nil {
		problems = append(problems, err)
	}
	if c.verifiers, err = chooseVerifiers(known); err != nil {
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
type boltData struct {
	// Path of the file; default credence.db in data_dir.
	Path string `hcl:"path"`
	// MmapSize is the address space reserved for the file, in bytes; default
	// 8 GiB.
	MmapSize int `hcl:"mmap_size"`
	// RingBytes bounds the history kept for followers, in bytes; default
	// 16 MiB.
	RingBytes int `hcl:"ring_bytes"`
}

func chooseBolt(p config.Plugin, s Settings, _ *choice) (openStore, error) {
	d := boltData{Path: filepath.Join(s.DataDir, storeFile)}
	if err := p.Decode(&d); err != nil {
		return nil, err
	}
	cfg := bolt.Config{Path: d.Path, MmapSize: d.MmapSize, RingBytes: d.RingBytes}
	if err := cfg.Validate(); err != nil {
		return nil, p.Errorf("%w", err)
	}
	return openBolt(cfg), nil
}

// sqlData is the section plugin_data of SPIRE's DataStore "sql".
type sqlData struct {
	DatabaseType       string `hcl:"database_type"`
	ConnectionString   string `hcl:"connection_string"`
	ROConnectionString string `hcl:"ro_connection_string"`
	RootCAPath         string `hcl:"root_ca_path"`
	ClientCertPath     string `hcl:"client_cert_path"`
	ClientKeyPath      string `hcl:"client_key_path"`
	ConnMaxLifetime    string `hcl:"conn_max_lifetime"`
	MaxOpenConns       int    `hcl:"max_open_conns"`
	MaxIdleConns       int    `hcl:"max_idle_conns"`
	DisableMigration   bool   `hcl:"disable_migration"`
}

// chooseSQL takes sqlite3 for what it means in SPIRE's files: the store of a
// single server, in a file. It is the embedded store here.
func chooseSQL(p config.Plugin, s Settings, c *choice) (openStore, error) {
	var d sqlData
	if err := p.Decode(&d); err != nil {
		return nil, err
	}
	if d.DatabaseType != "sqlite3" {
		return nil, p.Errorf("database_type %q is not supported: this version keeps its data in the embedded store "+
			"(DataStore \"bolt\") and cannot read SQL databases; start with an empty data_dir and register entries anew", d.DatabaseType)
	}
	c.notices = append(c.notices, config.Notice{
		Key:    "plugins.DataStore.sql",
		Reason: "sqlite3 means the embedded store (DataStore \"bolt\"); connection_string is not used",
	})
	path := filepath.Join(s.DataDir, storeFile)
	open := openBolt(bolt.Config{Path: path})
	return func(ctx context.Context, env storeEnv) (store.Store, error) {
		if err := refuseSPIREData(p, path, s.DataDir, d.ConnectionString); err != nil {
			return nil, err
		}
		return open(ctx, env)
	}, nil
}

// refuseSPIREData keeps the server from starting empty beside the data of a
// SPIRE server: its agents and workloads would be unknown, and its authorities
// would not be trusted. Once there is a store of ours, the rest is history.
func refuseSPIREData(p config.Plugin, ours, dataDir, connection string) error {
	if exists(ours) {
		return nil
	}
	for _, path := range []string{sqlitePath(connection), filepath.Join(dataDir, "journal.pem")} {
		if path == "" || !exists(path) {
			continue
		}
		return p.Errorf("%s belongs to a SPIRE server, and this version cannot import it: "+
			"nothing was changed; keep SPIRE, or name another data_dir and connection_string and register entries anew", path)
	}
	return nil
}

// sqlitePath is the file in a connection string of sqlite3, or nothing.
func sqlitePath(connection string) string {
	path, _, _ := strings.Cut(strings.TrimPrefix(connection, "file:"), "?")
	if path == ":memory:" {
		return ""
	}
	return strings.TrimPrefix(path, "//")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil || !errors.Is(err, fs.ErrNotExist)
}
