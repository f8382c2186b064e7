package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/pkg/agent/cache"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// callTimeout bounds one call to the server.
const callTimeout = 30 * time.Second

// minter gets SVIDs for the cache over the connection of the moment.
type minter Agent

var _ cache.Minter = (*minter)(nil)

// MintX509 is cache.Minter.
func (m *minter) MintX509(ctx context.Context, reqs []cache.X509Request) ([]cache.X509Result, error) {
	params := make([]*svidv1.NewX509SVIDParams, 0, len(reqs))
	for _, r := range reqs {
		params = append(params, &svidv1.NewX509SVIDParams{EntryId: r.EntryID, Csr: r.CSR})
	}
	var resp *svidv1.BatchNewX509SVIDResponse
	err := m.call(ctx, func(ctx context.Context, conn grpc.ClientConnInterface) (err error) {
		resp, err = svidv1.NewSVIDClient(conn).BatchNewX509SVID(ctx, &svidv1.BatchNewX509SVIDRequest{Params: params})
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(resp.GetResults()) != len(reqs) {
		return nil, fmt.Errorf("minting X509-SVIDs: %d results for %d requests", len(resp.GetResults()), len(reqs))
	}
	out := make([]cache.X509Result, 0, len(reqs))
	for _, r := range resp.GetResults() {
		s := r.GetStatus()
		if code := codes.Code(s.GetCode()); code != codes.OK {
			out = append(out, cache.X509Result{Err: status.Error(code, s.GetMessage())})
			continue
		}
		out = append(out, cache.X509Result{Chain: r.GetSvid().GetCertChain(), ExpiresAt: time.Unix(r.GetSvid().GetExpiresAt(), 0)})
	}
	return out, nil
}

// MintJWT is cache.Minter.
func (m *minter) MintJWT(ctx context.Context, entryID string, audience []string) (string, time.Time, time.Time, error) {
	var resp *svidv1.NewJWTSVIDResponse
	err := m.call(ctx, func(ctx context.Context, conn grpc.ClientConnInterface) (err error) {
		resp, err = svidv1.NewSVIDClient(conn).NewJWTSVID(ctx, &svidv1.NewJWTSVIDRequest{EntryId: entryID, Audience: audience})
		return err
	})
	if err != nil {
		return "", time.Time{}, time.Time{}, err
	}
	s := resp.GetSvid()
	return s.GetToken(), time.Unix(s.GetIssuedAt(), 0), time.Unix(s.GetExpiresAt(), 0), nil
}

// failoverWait is how long a call waits for another connection when the one it
// was made on is gone: as long as it takes to find another server.
const failoverWait = 2 * time.Second

// call makes a call, and again when the connection was replaced under it, by
// one with the next SVID (the server refuses the old one from the moment it has
// seen the new one) or to another server. What is called may have been done
// twice then.
func (m *minter) call(ctx context.Context, do func(context.Context, grpc.ClientConnInterface) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for {
		l := m.link.Load()
		if l == nil {
			return status.Error(codes.Unavailable, "no connection to the server; the agent's log says why")
		}
		err := l.use(func(conn grpc.ClientConnInterface) error { return do(ctx, conn) })
		_, refused := refusal(err)
		lost := status.Code(err) == codes.Unavailable
		switch {
		case !refused && !lost && !errors.Is(err, errLinkClosed):
			return err
		case m.link.Load() != l:
		case !lost || !m.awaitNext(ctx, l):
			return err
		}
	}
}

// awaitNext waits until the connection has a successor, if it is broken and was
// not for long.
func (m *minter) awaitNext(ctx context.Context, l *link) bool {
	if l.conn.GetState() == connectivity.Ready {
		return false // The server itself says that it cannot.
	}
	wait := failoverWait
	if at := m.lostAt.Load(); at != nil && !m.connected.Load() {
		wait -= time.Since(*at)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-l.replaced:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}
