package connlimit

import (
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// people is who entered a pool and who had to go.
type people struct {
	pool *Pool[string]
	mu   sync.Mutex
	gone []int
	n    int
}

func (p *people) enter(key string) (*Place[string], error) {
	id := p.n
	p.n++
	return p.pool.Enter(time.Now(), key, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.gone = append(p.gone, id)
	})
}

func TestPoolMakesRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &people{pool: NewPool[string](PoolConfig{Total: 3, PerKey: 2, Grace: time.Second})}
		places := make([]*Place[string], 0, 8)
		enter := func(key string, want error) {
			t.Helper()
			place, err := p.enter(key)
			if !errors.Is(err, want) {
				t.Fatalf("entering as %s: %v, want %v", key, err, want)
			}
			places = append(places, place)
		}
		// Limit−1, limit and limit+1 of one key, then of all.
		enter("a", nil)
		enter("a", nil)
		enter("a", ErrKeyFull)
		enter("b", nil)
		enter("c", ErrFull)
		if p.pool.Len() != 3 || len(p.gone) != 0 {
			t.Fatalf("%d places are taken, gone %v", p.pool.Len(), p.gone)
		}
		// Who has had their grace makes room, the oldest first.
		_, in := p.pool.Freed(time.Now())
		if in != time.Second {
			t.Errorf("room in %v, want 1s", in)
		}
		time.Sleep(in)
		enter("c", nil)
		enter("a", nil) // One of its two has gone.
		if want := []int{0, 1}; !slices.Equal(p.gone, want) {
			t.Errorf("gone are %v, want %v", p.gone, want)
		}
		// Whoever leaves is waited for; leaving again is nothing.
		freed, _ := p.pool.Freed(time.Now())
		for _, place := range places {
			place.Leave()
			place.Leave()
		}
		<-freed
		if p.pool.Len() != 0 || len(p.pool.byKey) != 0 {
			t.Errorf("%d places and %d keys are left", p.pool.Len(), len(p.pool.byKey))
		}
	})
}

func TestPoolOfTheNewest(t *testing.T) {
	t.Parallel()
	p := &people{pool: NewPool[string](PoolConfig{PerKey: 2, Newest: true})}
	for range 5 {
		if _, err := p.enter("a"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.enter("b"); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, err := p.enter(""); err != nil {
			t.Errorf("nobody's connections are counted together: %v", err)
		}
	}
	if want := []int{0, 1, 2}; !slices.Equal(p.gone, want) || p.pool.Len() != 8 {
		t.Errorf("gone are %v, want %v; %d are left", p.gone, want, p.pool.Len())
	}
}

func TestPoolEvictsAll(t *testing.T) {
	t.Parallel()
	p := &people{pool: NewPool[string](PoolConfig{})}
	var left *Place[string]
	for _, key := range []string{"a", "b", "", "a"} {
		var err error
		if left, err = p.enter(key); err != nil {
			t.Fatal(err)
		}
	}
	left.Leave()
	p.pool.EvictAll()
	p.pool.EvictAll()
	if want := []int{0, 1, 2}; !slices.Equal(p.gone, want) || p.pool.Len() != 0 {
		t.Errorf("gone are %v, want %v; %d are left", p.gone, want, p.pool.Len())
	}
	if _, err := p.enter("a"); err != nil || p.pool.Len() != 1 {
		t.Errorf("afterwards: %v", err)
	}
}

func TestPoolIsSafe(t *testing.T) {
	t.Parallel()
	p := NewPool[int](PoolConfig{Total: 8, PerKey: 2, Newest: true})
	var g sync.WaitGroup
	for i := range 8 {
		g.Go(func() {
			for range 2000 {
				var place *Place[int]
				evicted := make(chan struct{})
				place, err := p.Enter(time.Now(), i%3, func() { close(evicted) })
				if err != nil {
					t.Error(err)
					return
				}
				p.Freed(time.Now())
				place.Leave()
			}
		})
	}
	g.Wait()
	if p.Len() != 0 {
		t.Errorf("%d places are left", p.Len())
	}
}

func TestShareLeavesSomeForOthers(t *testing.T) {
	t.Parallel()
	s := NewShare[int](100)
	take := func(key int) (n int) {
		for s.Take(key) {
			n++
		}
		return n
	}
	for key, want := range []int{50, 25, 13, 6, 3} {
		if got := take(key); got != want {
			t.Errorf("number %d gets %d, want %d", key, got, want)
		}
	}
	for range 50 {
		s.Give(0)
	}
	if s.Used() != 47 || s.Total() != 100 {
		t.Errorf("%d of %d are used, want 47 of 100", s.Used(), s.Total())
	}
	if got := take(5); got == 0 {
		t.Error("a newcomer gets nothing of what was given back")
	}
	var none *Share[int]
	if !none.Take(1) {
		t.Error("a nil Share does not give")
	}
	none.Give(1)
}

// S08: the budget at its limit−1, limit and limit+1.
func TestS08_Budget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for n, want := range map[int]bool{99: true, 100: true, 101: false} {
			b := NewBudget(100, nil, time.Now())
			if got := b.read(n); got != want {
				t.Errorf("%d of 100 bytes: %v, want %v", n, got, want)
			}
		}
		b := NewBudget(1000, nil, time.Now())
		for range 100 { // Finished messages cost nothing,
			if !b.read(900 + messageHeader) {
				t.Fatal("a finished message is held against the client")
			}
			b.Took(900)
		}
		for range 100 { // nor do calls that were reached,
			if !b.read(1000) {
				t.Fatal("a call is held against the client")
			}
			b.Reached()
		}
		b.Took(1 << 20) // and are no credit for what comes.
		if b.read(1001) {
			t.Error("credit was kept")
		}
		time.Sleep(time.Second)
		if !b.read(1) {
			t.Error("nothing is forgiven with time")
		}
		var none *Budget
		none.Took(1)
		none.Reached()
		none.Close()
	})
}

// Connections of one origin are bounded together, and what one of them used is
// free when it ends.
func TestBudgetIsShared(t *testing.T) {
	t.Parallel()
	shared := NewBudget(100, nil, time.Now())
	one, two := NewBudget(80, shared, time.Now()), NewBudget(80, shared, time.Now())
	if !one.read(60) || two.read(60) {
		t.Error("two connections have more than their origin may")
	}
	one.Close()
	if !two.read(10) {
		t.Error("what a closed connection used is not free")
	}
	two.Took(1 << 20)
	if one.read(30) {
		t.Error("a closed connection may go on")
	}
	if used := shared.used.Load(); used != 0 {
		t.Errorf("%d bytes are used by nobody", used)
	}
}

// frame is an HTTP/2 frame of a type with n bytes of payload.
func frame(kind byte, n int) []byte {
	return append([]byte{byte(n >> 16), byte(n >> 8), byte(n), kind, 0, 0, 0, 0, 1}, make([]byte, n)...)
}

// Only the payload of DATA frames counts, and calls, however the bytes come.
func TestFramesAreCounted(t *testing.T) {
	t.Parallel()
	stream := slices.Concat(make([]byte, preface), frame(4, 18), frame(1, 300), frame(0, 1000), frame(8, 4), frame(0, 0), frame(0, 70000), frame(6, 8), frame(0, 1))
	for _, piece := range []int{1, 2, 7, 9, 64, 16384, len(stream)} {
		f := frames{skip: preface}
		got := 0
		for part := range slices.Chunk(stream, piece) {
			got += f.count(part)
		}
		if got != 71001+callCost {
			t.Errorf("in pieces of %d: %d bytes, want 71001 and a call", piece, got)
		}
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(slices.Concat(make([]byte, preface), frame(4, 18), frame(0, 100)), 3)
	f.Fuzz(func(t *testing.T, data []byte, piece int) {
		whole, parts := frames{skip: preface}, frames{skip: preface}
		want, got := whole.count(data), 0
		for part := range slices.Chunk(data, max(1, piece)) {
			got += parts.count(part)
		}
		if got != want || whole != parts {
			t.Errorf("%d bytes in one piece, %d in pieces", want, got)
		}
	})
}

func TestConnEndsAtItsBudget(t *testing.T) {
	t.Parallel()
	server, client := net.Pipe()
	defer server.Close()
	go func() {
		defer client.Close()
		_, _ = client.Write(append(make([]byte, preface), frame(0, 4096)...)) // It fails when the reader has had enough.
	}()
	n, err := io.Copy(io.Discard, NewConn(server, NewBudget(1000, nil, time.Now())))
	if err == nil || n > 1000+preface+frameHeader || !strings.Contains(err.Error(), "1000 bytes of unfinished calls") {
		t.Errorf("read %d bytes: %v", n, err)
	}
}

func BenchmarkPool(b *testing.B) {
	p := NewPool[int](PoolConfig{Total: 4096, PerKey: 64})
	for b.Loop() {
		place, err := p.Enter(time.Time{}, 1, func() {})
		if err != nil {
			b.Fatal(err)
		}
		place.Leave()
	}
}

func BenchmarkBudget(b *testing.B) {
	x := NewBudget(1<<20, nil, time.Now())
	for b.Loop() {
		x.read(500)
		x.Took(500 - messageHeader)
	}
}

func BenchmarkFrames(b *testing.B) {
	call := slices.Concat(frame(1, 60), frame(0, 500))
	var f frames
	for b.Loop() {
		f.count(call)
	}
}
