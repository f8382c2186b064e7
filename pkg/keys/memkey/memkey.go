package memkey

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/credence-id/credence/pkg/keys"
)

// Manager is a keys.Manager.
type Manager struct {
	mu   sync.RWMutex // guards keys
	keys map[string]keys.Key
}

var _ keys.Manager = (*Manager)(nil)

// New returns a manager without keys.
func New() *Manager { return &Manager{keys: map[string]keys.Key{}} }

// Name is "memory".
func (*Manager) Name() string { return "memory" }

// Durable is false.
func (*Manager) Durable() bool { return false }

// Generate makes a key under id.
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
	k := keys.Key{ID: id, Type: t, Signer: keys.Opaque(signer)}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys[id] = k
	return k, nil
}

// Get returns the key, or keys.ErrNotFound.
func (m *Manager) Get(_ context.Context, id string) (keys.Key, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	k, ok := m.keys[id]
	if !ok {
		return keys.Key{}, fmt.Errorf("key %q: %w", id, keys.ErrNotFound)
	}
	return k, nil
}

// List returns every key, ordered by id.
func (m *Manager) List(context.Context) ([]keys.Key, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	list := make([]keys.Key, 0, len(m.keys))
	for _, k := range m.keys {
		list = append(list, k)
	}
	slices.SortFunc(list, func(a, b keys.Key) int { return cmp.Compare(a.ID, b.ID) })
	return list, nil
}

// Delete removes the key.
func (m *Manager) Delete(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.keys, id)
	return nil
}
