package server

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/credence-id/credence/pkg/atomicfile"
)

// serverIDFile is the file in data_dir that holds the server's ID.
const serverIDFile = "server_id"

// serverIDBytes is how many random bytes make an ID.
const serverIDBytes = 16

// prepareDataDir makes the directory, for its owner alone, if it is not there,
// and proves that files can be made in it.
func prepareDataDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return keyError("server.data_dir", "making %s: %w: make it yourself, or name another", dir, err)
	}
	probe, err := os.CreateTemp(dir, ".probe-*")
	if err != nil {
		return keyError("server.data_dir", "%s must be writable by uid %d: %w: change its owner, or name another", dir, os.Getuid(), err)
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// loadServerID reads the server's ID, which is made at the first start and is
// kept for ever: the journal of this server's authorities is found by it.
func loadServerID(dir string) (string, error) {
	path := filepath.Join(dir, serverIDFile)
	id, err := readServerID(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeServerID(path)
	}
	return id, err
}

func readServerID(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the server's ID: %w", err)
	}
	id := strings.TrimSpace(string(data))
	if raw, err := hex.DecodeString(id); err != nil || len(raw) != serverIDBytes {
		return "", fmt.Errorf("reading the server's ID: %s does not hold %d bytes in hexadecimal: restore it; "+
			"without it this server's authorities are not found again", path, serverIDBytes)
	}
	return id, nil
}

func makeServerID(path string) (string, error) {
	raw := make([]byte, serverIDBytes)
	rand.Read(raw)
	id := hex.EncodeToString(raw)
	if err := atomicfile.Write(path, []byte(id+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("making the server's ID: %w", err)
	}
	return id, nil
}
