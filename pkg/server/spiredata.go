package server

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// importInstead is the next step for who wants to move from a SPIRE server.
const importInstead = "let SPIRE run, start this server with a data_dir, sockets and a port of its own, " +
	"and copy what is registered with `credence-server import`; docs/migrating-from-spire.md has every step"

// foreignData is where a SPIRE server may have left its data: the same
// configuration file is enough for that.
type foreignData struct {
	store    string // our store's file; once there is one, the rest is history
	database string // SPIRE's, of DataStore "sql"; may be empty
	keys     string // the file of KeyManager "disk"; may be empty
	dataDir  string

	report func(key, format string, args ...any) error // an error at a key of the file
}

// refuse keeps the server from starting empty in the place of a SPIRE server:
// its agents and workloads would be unknown, and its authorities would not be
// trusted. It only looks, at files in data_dir and at those of the
// configuration.
func (f foreignData) refuse() error {
	if exists(f.store) {
		return nil
	}
	found := func(key, what, path string) error {
		return f.report(key, "%s is %s of a SPIRE server, and nothing was changed: %s", path, what, importInstead)
	}
	if f.database != "" && exists(f.database) {
		return found("plugins.DataStore.sql", "the database", f.database)
	}
	entries, err := os.ReadDir(f.dataDir)
	if err != nil {
		entries = nil // What is wrong with data_dir is said where it is used.
	}
	for _, e := range entries {
		if path := filepath.Join(f.dataDir, e.Name()); e.Type().IsRegular() && isSQLite(path) {
			return found("server.data_dir", "the database", path)
		}
	}
	if path := filepath.Join(f.dataDir, "journal.pem"); exists(path) {
		return found("server.data_dir", "the journal", path)
	}
	if path := filepath.Join(f.dataDir, "keys.json"); isSPIREKeys(path) {
		return found("server.data_dir", "the key file", path)
	}
	if f.keys != "" && isSPIREKeys(f.keys) {
		return found("plugins.KeyManager.disk", "the key file", f.keys)
	}
	return nil
}

// maxForeign bounds what is read of a file that may be SPIRE's.
const maxForeign = 16 << 20

// isSPIREKeys says whether the file is a SPIRE server's keys.json: an object
// with keys and nothing that marks it as ours.
func isSPIREKeys(path string) bool {
	data, err := readPart(path, maxForeign)
	var file map[string]json.RawMessage
	if err != nil || json.Unmarshal(data, &file) != nil {
		return false
	}
	_, keys := file["keys"]
	_, format := file["format"]
	return keys && !format
}

// isSQLite says whether the file is a database of SQLite 3.
func isSQLite(path string) bool {
	const magic = "SQLite format 3\x00"
	data, err := readPart(path, int64(len(magic)))
	return err == nil && string(data) == magic
}

// readPart reads at most limit bytes of a file.
func readPart(path string, limit int64) (data []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.ReadAll(io.LimitReader(f, limit))
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
