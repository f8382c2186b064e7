package server

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credence-id/credence/pkg/store/etcd/etcdtest"
)

// TestEtcdPreflight: what the files of DataStore "etcd" have wrong is said
// before anything is opened, with file, line and key; no password is.
func TestEtcdPreflight(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		keys string
		want []string
	}{
		"password file":  {`username = "me" password_file = "` + dir + `/none"`, []string{"plugin_data.password_file: ", "no such file"}},
		"empty password": {`username = "me" password_file = "` + empty + `"`, []string{"plugin_data.password_file: ", "is empty"}},
		"authorities":    {`ca_file = "` + empty + `"`, []string{"plugin_data.ca_file: ", "holds no certificate"}},
		"certificate":    {`cert_file = "` + empty + `" key_file = "` + empty + `"`, []string{"plugin_data.cert_file: ", "cannot be used"}},
		"both":           {`ca_file = "` + dir + `/none" username = "me" password_file = "` + empty + `"`, []string{"plugin_data.ca_file: ", "plugin_data.password_file: "}},
		"nothing":        {`username = "me" password = "hunter2"`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg, err := load(t, `server {
				trust_domain = "example.org"
				data_dir = "`+t.TempDir()+`"
				socket_path = "`+t.TempDir()+`/api.sock"
			}
			plugins {
				KeyManager "memory" {}
				DataStore "etcd" {
					plugin_data { endpoints = ["https://127.0.0.1:1"] `+tc.keys+` }
				}
			}`)
			if err != nil {
				t.Fatal(err)
			}
			if err := cfg.Validate(); err != nil {
				t.Fatalf("Validate: %v", err)
			}
			err = cfg.Preflight()
			if (err == nil) != (tc.want == nil) {
				t.Fatalf("Preflight: %v", err)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "server.conf:9: ") {
					t.Errorf("no %q in:\n%v", want, err)
				}
			}
		})
	}
}

// TestNoStoreInEtcd: work on a store that is not there makes none.
func TestNoStoreInEtcd(t *testing.T) {
	t.Parallel()
	cfg, err := load(t, `server {
		trust_domain = "example.org"
		data_dir = "`+t.TempDir()+`"
		socket_path = "`+t.TempDir()+`/api.sock"
	}
	plugins {
		KeyManager "memory" {}
		DataStore "etcd" {
			plugin_data { endpoints = ["`+etcdtest.New(t)+`"] }
		}
	}`)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := cfg.OpenStore(t.Context(), false, discard); !errors.Is(err, ErrNoStore) {
			t.Fatalf("where there is none: %v", err)
		}
	}
	for _, create := range []bool{true, false} {
		s, err := cfg.OpenStore(t.Context(), create, discard)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
