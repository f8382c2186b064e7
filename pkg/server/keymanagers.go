package server

import (
	"context"
	"path/filepath"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/keys/diskkey"
	"github.com/credence-id/credence/pkg/keys/memkey"
	"github.com/credence-id/credence/pkg/preflight"
)

// diskData is the section plugin_data of KeyManager "disk".
//
//credence:plugin_data server KeyManager disk
type diskData struct {
	// KeysPath is the file.
	KeysPath string `hcl:"keys_path" unset:"keys.json in data_dir"`
}

// noData is the section plugin_data of plugins that have no keys.
//
//credence:plugin_data server KeyManager memory
//credence:plugin_data server NodeAttestor join_token
type noData struct{}

func chooseDisk(p config.Plugin, s Settings, c *choice) (openKeys, error) {
	var d diskData
	if err := p.Decode(&d); err != nil {
		return nil, err
	}
	if d.KeysPath == "" {
		d.KeysPath = filepath.Join(s.DataDir, "keys.json")
	}
	c.foreign.keys = d.KeysPath
	c.check(func() error {
		if err := diskkey.Check(d.KeysPath); err != nil {
			return p.DataErrorf("keys_path", "%w", err)
		}
		if err := preflight.Parent(d.KeysPath, s.DataDir); err != nil {
			return p.DataErrorf("keys_path", "%w", err)
		}
		return nil
	})
	return func(context.Context) (keys.Manager, error) {
		m, err := diskkey.New(d.KeysPath)
		if err != nil {
			return nil, p.Errorf("%w", err)
		}
		return m, nil
	}, nil
}

func chooseMemory(p config.Plugin, _ Settings, _ *choice) (openKeys, error) {
	if err := p.Decode(&noData{}); err != nil {
		return nil, err
	}
	return func(context.Context) (keys.Manager, error) { return memkey.New(), nil }, nil
}
