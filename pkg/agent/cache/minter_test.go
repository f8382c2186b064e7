package cache_test

import (
	"context"
	"time"

	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/agent/cachetest"
)

// spoiled is a server whose answers were tampered with.
type spoiled struct {
	*cachetest.Server
	spoil    func(*cachetest.Server, []cache.X509Result)
	spoilJWT func(token string) string
}

func (s *spoiled) MintX509(ctx context.Context, reqs []cache.X509Request) ([]cache.X509Result, error) {
	out, err := s.Server.MintX509(ctx, reqs)
	if err == nil && s.spoil != nil {
		s.spoil(s.Server, out)
	}
	return out, err
}

func (s *spoiled) MintJWT(ctx context.Context, entryID string, audience []string) (string, time.Time, time.Time, error) {
	token, issued, expires, err := s.Server.MintJWT(ctx, entryID, audience)
	if s.spoilJWT != nil {
		token = s.spoilJWT(token)
	}
	return token, issued, expires, err
}
