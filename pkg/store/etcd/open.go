package etcd

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/semaphore"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/engine"
)

const (
	// engineName is the configured one.
	engineName = "etcd"
	// format is the layout that this program writes, see layout.go.
	format = 1
)

// ErrNone is returned by Open, if it is to make none, where there is no store.
var ErrNone = errors.New("store: etcd has none below the prefix")

// record is what the key "store" holds.
type record struct {
	Format int    `json:"format"`
	ID     string `json:"id"`
}

// Open connects to etcd and opens the store below the prefix, making it if
// nothing is there. It gives etcd DialTimeout to answer. It returns
// store.ErrFormat when a newer program wrote the store, store.ErrUnavailable
// with the reason when etcd cannot be used, ErrNone as Config.Existing says, and a
// [FieldError] for what is wrong with the configuration. ctx is for opening: the store lives until Close.
func Open(ctx context.Context, cfg Config) (_ *Store, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	s := &Store{
		cfg: cfg, at: layout{cfg.Prefix}, slots: semaphore.NewWeighted(maxUpdates),
		locks: newLocks(), closing: make(chan struct{}),
	}
	randomBytes(s.who[:])
	s.life, s.die = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			s.die()
		}
	}()
	if s.client, err = dial(s.life, cfg); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = s.client.Close() // Why it is not used is the error to tell.
		}
	}()
	s.metrics = newMetrics(s)
	m, err := s.load(ctx)
	if err != nil {
		return nil, err
	}
	s.ring = engine.NewRing(m.rev, math.MaxInt, cfg.RingBytes)
	s.metrics.all = append(s.metrics.all, engine.History(s.ring)...)
	if err := s.metrics.all.Register(cfg.Registerer); err != nil {
		return nil, err
	}
	f := newFeed(s, m)
	s.background.Go(func() { f.run(s.life) })
	if cfg.History > 0 {
		s.background.Go(func() { s.compactForEver(s.life, cfg.History) })
	}
	return s, nil
}

// load reads the record of the store, which it makes if there is none.
func (s *Store) load(ctx context.Context) (m moment, err error) {
	limited, cancel := context.WithTimeout(ctx, s.cfg.DialTimeout)
	defer cancel()
	var last error // What etcd, or the way to it, said.
	for {
		m, err = s.loadOnce(limited)
		if errors.Is(err, store.ErrUnavailable) && (last == nil || diagnose(err) != causeSlow) {
			last = err
		}
		if err == nil || limited.Err() != nil || !away(err) {
			break
		}
	}
	if limited.Err() != nil && ctx.Err() == nil && err != nil {
		err = cmp.Or(last, explain("opening the store", err))
	}
	return m, err
}

// away says whether waiting for etcd may help.
func away(err error) bool {
	switch diagnose(err) {
	case causeAway, causeLeader, causeSlow, causeBusy:
		return errors.Is(err, store.ErrUnavailable)
	}
	return false
}

func (s *Store) loadOnce(ctx context.Context) (moment, error) {
	var resp *clientv3.TxnResponse
	ops := append(s.momentOps(""), clientv3.OpGet(s.cfg.Prefix, clientv3.WithPrefix(), clientv3.WithLimit(1), clientv3.WithKeysOnly()))
	err := s.attempt(ctx, "opening the store", func(ctx context.Context) (err error) {
		resp, err = s.client.Txn(ctx).Then(ops...).Commit()
		return err
	})
	if err != nil {
		return moment{}, err
	}
	text, head, present := first(resp.Responses[1]), first(resp.Responses[0]), first(resp.Responses[2])
	switch {
	case present == nil && s.cfg.Existing:
		return moment{}, fmt.Errorf("%w %s: look at endpoints and prefix", ErrNone, s.cfg.Prefix)
	case present == nil:
		if err := s.create(ctx); err != nil {
			return moment{}, err
		}
		return s.loadOnce(ctx)
	case text == nil || head == nil:
		return moment{}, fmt.Errorf("store: the keys below %s in etcd, such as %q, are not a store of this program: choose another prefix", s.cfg.Prefix, present.Key)
	}
	if err := s.read(text.Value); err != nil {
		return moment{}, err
	}
	return s.moment(resp)
}

// read takes the record apart and refuses what this program cannot read.
func (s *Store) read(text []byte) error {
	var r record
	if err := json.Unmarshal(text, &r); err != nil || r.Format < 1 || len(r.ID) != 32 {
		return fmt.Errorf("store: %s in etcd is not the record of a store of this program: choose another prefix", s.at.store())
	}
	if r.Format > format {
		return fmt.Errorf("%w: %s in etcd has format %d, this program knows up to %d: run the newer program",
			store.ErrFormat, s.cfg.Prefix, r.Format, format)
	}
	s.record = string(text)
	s.info = store.Info{ID: r.ID, Format: r.Format, Engine: engineName, Remote: true}
	return nil
}

// create makes an empty store, unless somebody else has written below the
// prefix in the meantime.
func (s *Store) create(ctx context.Context) error {
	var id [16]byte
	randomBytes(id[:])
	text, err := json.Marshal(record{Format: format, ID: hex.EncodeToString(id[:])})
	if err != nil {
		return fmt.Errorf("store: making its record: %w", err)
	}
	return s.attempt(ctx, "making the store", func(ctx context.Context) error {
		_, err := s.client.Txn(ctx).
			If(clientv3.Compare(clientv3.CreateRevision(s.cfg.Prefix), "=", 0).WithPrefix()).
			Then(clientv3.OpPut(s.at.store(), string(text)), clientv3.OpPut(s.at.head(), "")).
			Commit()
		return err
	})
}
