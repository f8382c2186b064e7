package connlimit

import (
	"container/list"
	"errors"
	"sync"
	"time"
)

// Errors of [Pool.Enter].
var (
	// ErrFull: as many as there may be are there, none of them long enough to
	// have to go.
	ErrFull = errors.New("too many connections")
	// ErrKeyFull: there are too many of this key.
	ErrKeyFull = errors.New("too many connections of one origin")
)

// PoolConfig of a Pool.
type PoolConfig struct {
	// Total is how many there may be; 0: as many as come.
	Total int
	// PerKey is how many there may be of one key; 0: as many as come. The zero
	// key is nobody's, and its connections are not counted together.
	PerKey int
	// Grace is how long each may stay before it has to make room for another.
	Grace time.Duration
	// Newest: when a key has too many, its oldest makes room at once, in place
	// of the newcomer being refused.
	Newest bool
}

// Pool is a set of connections that is bounded. When it is full, the oldest
// makes room: whoever holds places to keep others out has to keep coming back,
// and others are done before they are the oldest. Use [NewPool].
type Pool[K comparable] struct {
	cfg PoolConfig

	mu    sync.Mutex
	all   list.List // of *Place[K], the oldest first
	byKey map[K]*list.List
	freed chan struct{} // closed, and replaced, when a place is free; nil: nobody waits
}

// Place is one connection's in a Pool.
type Place[K comparable] struct {
	pool  *Pool[K]
	key   K
	evict func()
	since time.Time
	inAll *list.Element // nil once it has left
	inKey *list.Element
}

// NewPool returns an empty Pool.
func NewPool[K comparable](cfg PoolConfig) *Pool[K] {
	return &Pool[K]{cfg: cfg, byKey: make(map[K]*list.List)}
}

// Enter takes a place. If another has to make room for it, that one's evict is
// called, without any lock held, and its place is gone. The error is [ErrFull]
// or [ErrKeyFull].
func (p *Pool[K]) Enter(now time.Time, key K, evict func()) (*Place[K], error) {
	place := &Place[K]{pool: p, key: key, evict: evict, since: now}
	gone, err := p.enter(now, place)
	for _, g := range gone {
		g.evict()
	}
	if err != nil {
		return nil, err
	}
	return place, nil
}

func (p *Pool[K]) enter(now time.Time, place *Place[K]) (gone []*Place[K], err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var nobody K
	if own := p.byKey[place.key]; own != nil && place.key != nobody && p.cfg.PerKey > 0 && own.Len() >= p.cfg.PerKey {
		if !p.cfg.Newest {
			return nil, ErrKeyFull
		}
		gone = append(gone, p.remove(own.Front()))
	}
	if p.cfg.Total > 0 && p.all.Len() >= p.cfg.Total {
		oldest := p.all.Front()
		if now.Sub(oldest.Value.(*Place[K]).since) < p.cfg.Grace {
			return gone, ErrFull
		}
		gone = append(gone, p.remove(oldest))
	}
	own := p.byKey[place.key]
	if own == nil {
		own = list.New()
		p.byKey[place.key] = own
	}
	place.inAll, place.inKey = p.all.PushBack(place), own.PushBack(place)
	return gone, nil
}

// remove is called with mu held.
func (p *Pool[K]) remove(e *list.Element) *Place[K] {
	place := e.Value.(*Place[K])
	p.all.Remove(place.inAll)
	own := p.byKey[place.key]
	own.Remove(place.inKey)
	if own.Len() == 0 {
		delete(p.byKey, place.key)
	}
	place.inAll, place.inKey = nil, nil
	if p.freed != nil {
		close(p.freed)
		p.freed = nil
	}
	return place
}

// EvictAll has every connection go that has a place now.
func (p *Pool[K]) EvictAll() {
	p.mu.Lock()
	var gone []*Place[K]
	for p.all.Len() > 0 {
		gone = append(gone, p.remove(p.all.Front()))
	}
	p.mu.Unlock()
	for _, g := range gone {
		g.evict()
	}
}

// Leave gives the place back. It may be called again, and on nil.
func (p *Place[K]) Leave() {
	if p == nil {
		return
	}
	p.pool.mu.Lock()
	defer p.pool.mu.Unlock()
	if p.inAll != nil {
		p.pool.remove(p.inAll)
	}
}

// Freed returns a channel that closes when a place becomes free, and in how
// long one that is taken may be had. It is for who was told ErrFull.
func (p *Pool[K]) Freed(now time.Time) (<-chan struct{}, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.freed == nil {
		p.freed = make(chan struct{})
	}
	oldest := p.all.Front()
	if oldest == nil {
		return p.freed, 0
	}
	return p.freed, max(0, oldest.Value.(*Place[K]).since.Add(p.cfg.Grace).Sub(now))
}

// Len is how many places are taken.
func (p *Pool[K]) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all.Len()
}
