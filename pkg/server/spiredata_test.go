package server

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// testdata/spire-data are the files of a SPIRE 1.15 server that was killed (the
// keys are cut short), and a journal.pem as older ones have.
func TestSPIREDataIsLeftAlone(t *testing.T) {
	t.Parallel()
	stores := map[string]string{
		"sql":  `DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "%[1]s/datastore.sqlite3" } }`,
		"bolt": `DataStore "bolt" {}`,
		"none": ``,
	}
	for _, files := range [][]string{
		{"datastore.sqlite3", "keys.json"}, // SPIRE since 1.9
		{"datastore.sqlite3"}, {"keys.json"}, {"journal.pem"},
	} {
		for engine, section := range stores {
			for _, keys := range []string{"memory", "disk"} {
				t.Run(fmt.Sprint(engine, files, keys), func(t *testing.T) {
					t.Parallel()
					cfg := testConfig(t)
					recordedSPIRE(t, cfg.Server.DataDir, files)
					before := contents(t, cfg.Server.DataDir)
					cfg.Plugins = parsePlugins(t, `KeyManager "`+keys+`" {} `+fmt.Sprintf(section+"%.0[1]s", cfg.Server.DataDir))
					says(t, fails(t, cfg), filepath.Join(cfg.Server.DataDir, files[0]), "SPIRE", "credence-server import", "nothing was changed", "docs/migrating-from-spire.md")
					if diff := cmp.Diff(before, contents(t, cfg.Server.DataDir)); diff != "" {
						t.Errorf("data_dir changed (-before +after):\n%s", diff)
					}
				})
			}
		}
	}
}

// The database may be anywhere.
func TestSPIREDatabaseElsewhereIsLeftAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	recordedSPIRE(t, dir, []string{"datastore.sqlite3"})
	for _, connection := range []string{"%s/datastore.sqlite3", "file:%s/datastore.sqlite3?mode=rwc", "file://%s/datastore.sqlite3"} {
		cfg := testConfig(t)
		connection = fmt.Sprintf(connection, dir)
		cfg.Plugins = parsePlugins(t, `KeyManager "memory" {} DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "`+connection+`" } }`)
		says(t, fails(t, cfg), filepath.Join(dir, "datastore.sqlite3"), "credence-server import")
	}
}

// Where SPIRE never was, its configuration starts the embedded store, now and
// later; and a database that appears afterwards changes nothing.
func TestSPIREConfigurationWithoutItsData(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Plugins = parsePlugins(t, `KeyManager "disk" {} DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "`+
		filepath.Join(cfg.Server.DataDir, "datastore.sqlite3")+`" } }`)
	if err := start(t, cfg).stop(); err != nil {
		t.Fatal(err)
	}
	recordedSPIRE(t, cfg.Server.DataDir, []string{"datastore.sqlite3"})
	start(t, cfg)
}

func TestSQLDatabasesNameTheWayOver(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"postgres", "mysql", "aws_postgres", "aws_mysql"} {
		cfg := testConfig(t)
		cfg.Plugins = parsePlugins(t, `KeyManager "memory" {} DataStore "sql" { plugin_data { database_type = "`+kind+`" connection_string = "x" } }`)
		_, err := New(cfg)
		if err == nil {
			t.Fatalf("%s was accepted", kind)
		}
		says(t, err, "plugins.DataStore.sql", kind, "embedded store", "credence-server import", "docs/migrating-from-spire.md")
	}
}

func recordedSPIRE(t *testing.T, dir string, files []string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		data, err := os.ReadFile(filepath.Join("testdata", "spire-data", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// contents are the files below a folder, with mode and digest.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		out[path] = info.Mode().String()
		if !info.Mode().IsRegular() {
			return nil
		}
		data, err := os.ReadFile(path)
		out[path] += fmt.Sprintf(" %x", sha256.Sum256(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
