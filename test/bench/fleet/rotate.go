package fleet

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Rotation is how the agents keep workloads' SVIDs fresh.
type Rotation struct {
	// Warm is how many SVIDs each agent keeps.
	Warm int
	// Every is how long after an SVID the next one is asked for: half of its
	// life.
	Every time.Duration
	// GiveUp is how long after it was due an SVID counts as missed: the other
	// half; default Every.
	GiveUp time.Duration
	// Count ends it after so many SVIDs; 0: the context does.
	Count int
}

const (
	// csrs is how many keys there are; a server does not know them again.
	csrs = 256
	// inFlight bounds the calls under way. Past it SVIDs are late, which is
	// counted.
	inFlight = 4096
	// again is the pause before a call is repeated.
	again = 100 * time.Millisecond
)

// PerSecond is how many SVIDs n agents ask for.
func (r Rotation) PerSecond(n int) float64 { return float64(n*r.Warm) / r.Every.Seconds() }

// Rotate asks for SVIDs until the context ends or it has Count of them, evenly
// spread, each call for one SVID over the connection of its agent. A call that
// fails is repeated; one that is under way when the context ends does not count.
func (f *Fleet) Rotate(ctx context.Context, r Rotation) error {
	if r.GiveUp == 0 {
		r.GiveUp = r.Every
	}
	pool, err := csrPool()
	if err != nil {
		return err
	}
	var calls sync.WaitGroup
	defer calls.Wait()
	free := make(chan struct{}, inFlight)
	start, gap := time.Now(), time.Duration(float64(time.Second)/r.PerSecond(len(f.agents)))
	seed := maphash.MakeSeed()
	for i := 0; r.Count == 0 || i < r.Count; i++ {
		due := start.Add(time.Duration(i) * gap)
		select {
		case <-time.After(time.Until(due)):
		case <-ctx.Done():
			return nil
		}
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		a, n := f.agents[i%len(f.agents)], i/len(f.agents)%r.Warm
		which := maphash.Comparable(seed, [2]int{a.number, n})
		calls.Go(func() {
			a.rotate(ctx, which, pool[i%len(pool)], due, due.Add(r.GiveUp))
			<-free
		})
	}
	return nil
}

func csrPool() ([][]byte, error) {
	pool := make([][]byte, csrs)
	for i := range pool {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		if pool[i], err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key); err != nil {
			return nil, err
		}
	}
	return pool, nil
}

// rotate gets one SVID.
func (a *agent) rotate(ctx context.Context, which uint64, csr []byte, due, giveUp time.Time) {
	for tries := 0; ; tries++ {
		begun := time.Now()
		err := a.mint(ctx, which, csr)
		if ctx.Err() != nil {
			return
		}
		now := time.Now()
		a.fleet.stats.note(func(s *Sample) {
			switch {
			case err == nil && tries > 0:
				s.Late = append(s.Late, now.Sub(due))
				fallthrough
			case err == nil:
				s.Minted = append(s.Minted, now.Sub(begun))
			default:
				count(&s.Failed, err)
			}
			if err != nil && now.After(giveUp) {
				s.Missed++
			}
		})
		if err == nil || now.After(giveUp) {
			return
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return
		}
	}
}

func (a *agent) mint(ctx context.Context, which uint64, csr []byte) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	l := a.link.Load()
	if l == nil {
		return errNotConnected
	}
	id, ok := a.cache.pick(which)
	if !ok {
		return status.Error(codes.FailedPrecondition, "the agent holds no entry")
	}
	var resp *svidv1.BatchNewX509SVIDResponse
	err := l.use(func(conn grpc.ClientConnInterface) (err error) {
		resp, err = svidv1.NewSVIDClient(conn).BatchNewX509SVID(ctx, &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{{EntryId: id, Csr: csr}}})
		return err
	})
	switch {
	case err != nil:
		return err
	case len(resp.GetResults()) != 1:
		return errors.New("not one result for one request")
	}
	if s := resp.GetResults()[0].GetStatus(); codes.Code(s.GetCode()) != codes.OK {
		return status.Error(codes.Code(s.GetCode()), fmt.Sprintf("%s: %s", id, s.GetMessage()))
	}
	return nil
}
