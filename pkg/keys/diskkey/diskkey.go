package diskkey

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/credence-id/credence/pkg/keys"
)

// Manager is a keys.Manager.
type Manager struct {
	path string
	// write is held while the file is written, which readers do not wait for.
	write sync.Mutex
	keys  atomic.Pointer[map[string]stored]
}

var _ keys.Manager = (*Manager)(nil)

// stored is a key and its PKCS #8 DER, as in the file.
type stored struct {
	key   keys.Key
	pkcs8 []byte
}

// New reads the keys from the file at path; there are none when it is not
// there. Its directory must exist. What a crash left beside the file is removed.
// It returns keys.ErrPermissions when others than the owner may read or write
// the file, and keys.ErrCorrupt when it cannot be understood; both name it.
func New(path string) (*Manager, error) {
	held, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("loading keys: %w", err)
	}
	if err := removeLeftovers(path); err != nil {
		return nil, fmt.Errorf("loading keys: %w", err)
	}
	m := &Manager{path: path}
	m.keys.Store(&held)
	return m, nil
}

// Check says what [New] would refuse about the file at path. It only reads.
func Check(path string) error {
	if _, err := read(path); err != nil {
		return fmt.Errorf("loading keys: %w", err)
	}
	return nil
}

// Name is "disk".
func (*Manager) Name() string { return "disk" }

// Durable is true.
func (*Manager) Durable() bool { return true }

// Generate makes a key under id. It is on stable storage when Generate returns.
func (m *Manager) Generate(ctx context.Context, id string, t keys.Type) (keys.Key, error) {
	if err := ctx.Err(); err != nil {
		return keys.Key{}, err
	}
	if err := keys.CheckID(id); err != nil {
		return keys.Key{}, err
	}
	signer, err := keys.New(t)
	if err != nil {
		return keys.Key{}, fmt.Errorf("generating key %q: %w", id, err)
	}
	s, err := store(id, t, signer)
	if err != nil {
		return keys.Key{}, err
	}
	err = m.change(func(held map[string]stored) { held[id] = s })
	if err != nil {
		return keys.Key{}, fmt.Errorf("keeping key %q: %w", id, err)
	}
	return s.key, nil
}

func store(id string, t keys.Type, signer crypto.Signer) (stored, error) {
	der, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return stored{}, fmt.Errorf("encoding key %q: %w", id, err)
	}
	return stored{key: keys.Key{ID: id, Type: t, Signer: keys.Opaque(signer)}, pkcs8: der}, nil
}

// change writes a changed copy to the file and then uses it.
func (m *Manager) change(fn func(map[string]stored)) error {
	m.write.Lock()
	defer m.write.Unlock()
	held := maps.Clone(*m.keys.Load())
	fn(held)
	if err := write(m.path, held); err != nil {
		return err
	}
	m.keys.Store(&held)
	return nil
}

// Get returns the key, or keys.ErrNotFound.
func (m *Manager) Get(_ context.Context, id string) (keys.Key, error) {
	s, ok := (*m.keys.Load())[id]
	if !ok {
		return keys.Key{}, fmt.Errorf("key %q: %w", id, keys.ErrNotFound)
	}
	return s.key, nil
}

// List returns every key, ordered by id.
func (m *Manager) List(context.Context) ([]keys.Key, error) {
	held := *m.keys.Load()
	list := make([]keys.Key, 0, len(held))
	for _, s := range held {
		list = append(list, s.key)
	}
	slices.SortFunc(list, func(a, b keys.Key) int { return cmp.Compare(a.ID, b.ID) })
	return list, nil
}

// Delete removes the key, from the file first.
func (m *Manager) Delete(_ context.Context, id string) error {
	if _, ok := (*m.keys.Load())[id]; !ok {
		return nil
	}
	if err := m.change(func(held map[string]stored) { delete(held, id) }); err != nil {
		return fmt.Errorf("deleting key %q: %w", id, err)
	}
	return nil
}
