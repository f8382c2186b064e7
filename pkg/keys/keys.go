package keys

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"strings"
)

// Type is an algorithm and a size.
type Type int

// Key types. ECP256 is what everything uses unless configured otherwise.
const (
	ECP256 Type = iota + 1
	ECP384
	RSA2048
	RSA4096
)

// Sentinel errors, tested with errors.Is.
var (
	// ErrNotFound is returned by Get for an id that has no key.
	ErrNotFound = errors.New("key not found")
	// ErrPermissions is returned when a key file can be read by others than
	// its owner; nothing is loaded.
	ErrPermissions = errors.New("key file permissions are too wide")
	// ErrCorrupt is returned when a key store cannot be read back.
	ErrCorrupt = errors.New("key store is corrupt")
)

// Key is a private key that can be used but not seen. Its Signer may be used
// concurrently and follows crypto.Signer.
type Key struct {
	ID     string
	Type   Type
	Signer crypto.Signer
}

// Manager makes, lists and uses private keys. All methods may be called
// concurrently.
type Manager interface {
	// Name is the configured name, such as "disk".
	Name() string
	// Generate makes a new key under id, replacing one that is there. Keys
	// already handed out go on working until the process ends.
	Generate(ctx context.Context, id string, t Type) (Key, error)
	// Get returns the key, or ErrNotFound.
	Get(ctx context.Context, id string) (Key, error)
	// List returns every key, ordered by id.
	List(ctx context.Context) ([]Key, error)
	// Delete removes the key; one that is not there is left alone.
	Delete(ctx context.Context, id string) error
	// Durable says whether keys survive a restart of this process.
	Durable() bool
}

var names = map[Type]string{ECP256: "ec-p256", ECP384: "ec-p384", RSA2048: "rsa-2048", RSA4096: "rsa-4096"}

// String is SPIRE's configuration word, such as "ec-p256".
func (t Type) String() string {
	if n, ok := names[t]; ok {
		return n
	}
	return fmt.Sprintf("keys.Type(%d)", int(t))
}

// ParseType reads SPIRE's configuration words ec-p256, ec-p384, rsa-2048 and
// rsa-4096.
func ParseType(s string) (Type, error) {
	for t, n := range names {
		if strings.EqualFold(n, s) {
			return t, nil
		}
	}
	return 0, fmt.Errorf("key type %q is not known: use ec-p256, ec-p384, rsa-2048 or rsa-4096", s)
}
