package diskkey

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/credence-id/credence/pkg/atomicfile"
	"github.com/credence-id/credence/pkg/keys"
)

// Mode of the file, and the widest one that is accepted.
const mode = 0o600

// maxFile bounds what is read; thousands of keys fit.
const maxFile = 16 << 20

// format marks the file as ours. A SPIRE server's keys.json, which looks
// alike, has no such field.
const format = "credence-keys-v1"

// document is the file, JSON. Keys are PKCS #8 DER, in base64.
type document struct {
	Format string            `json:"format"`
	Keys   map[string][]byte `json:"keys"`
}

func read(path string) (map[string]stored, error) {
	data, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]stored{}, nil
	}
	if err != nil {
		return nil, err
	}
	held, err := decode(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w; it is left as it is: restore it from a backup, or move it away to begin with new keys", keys.ErrCorrupt, path, err)
	}
	return held, nil
}

// readPrivate checks the permissions of the file that it then reads.
func readPrivate(path string) (data []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a regular file", keys.ErrCorrupt, path)
	}
	if info.Mode().Perm()&^mode != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o: run chmod %04o %s, and consider its keys known to others",
			keys.ErrPermissions, path, info.Mode().Perm(), mode, path)
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", keys.ErrCorrupt, path, maxFile)
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// decode never quotes the data in its errors.
func decode(data []byte) (map[string]stored, error) {
	var d document
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return nil, errors.New("it is not the JSON it should be")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON")
	}
	if d.Format != format {
		return nil, fmt.Errorf("its format is not %q, so it was written by another program or version", format)
	}
	held := make(map[string]stored, len(d.Keys))
	for id, der := range d.Keys {
		if err := keys.CheckID(id); err != nil {
			return nil, err
		}
		parsed, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			return nil, fmt.Errorf("key %q is not PKCS #8", id)
		}
		signer, ok := parsed.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("key %q does not sign", id)
		}
		t, err := keys.TypeOf(signer.Public())
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", id, err)
		}
		held[id] = stored{key: keys.Key{ID: id, Type: t, Signer: keys.Opaque(signer)}, pkcs8: der}
	}
	return held, nil
}

func write(path string, held map[string]stored) error {
	d := document{Format: format, Keys: make(map[string][]byte, len(held))}
	for id, s := range held {
		d.Keys[id] = s.pkcs8
	}
	data, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encoding keys: %w", err)
	}
	return atomicfile.Write(path, append(data, '\n'), mode)
}

// removeLeftovers removes temporary files of package atomicfile, which hold
// keys.
func removeLeftovers(path string) error {
	dir, prefix := filepath.Dir(path), filepath.Base(path)+".tmp"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok || digits == "" || strings.Trim(digits, "0123456789") != "" || !e.Type().IsRegular() {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
