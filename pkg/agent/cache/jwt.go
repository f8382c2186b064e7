package cache

import (
	"container/list"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
)

const (
	// maxJWTCalls bounds the calls to the server for JWT-SVIDs.
	maxJWTCalls = 64
	// maxJWTCallsEach bounds those that one workload's call leads to.
	maxJWTCallsEach = 8
	jwtTimeout      = 10 * time.Second
	// jwtTimeoutKept is the same when there is an older one to fall back on.
	jwtTimeoutKept = 3 * time.Second
)

// JWTSVID is a token and the identity it is for.
type JWTSVID struct {
	EntryID   string
	SPIFFEID  spiffeid.ID
	Hint      string
	Token     string
	ExpiresAt time.Time
}

// jwtSVID is a JWT-SVID that is kept for another call. Guarded by Cache.mu.
type jwtSVID struct {
	r        *record
	audience string // key
	token    string
	keyID    string
	// half is when another one is asked for; until expires this one does when
	// there is none.
	half, expires time.Time
	// retryAt is when the server is asked again after it could not be.
	retryAt time.Time
	tries   int
	used    *list.Element
}

// jwtKey is a token that is being asked for.
type jwtKey struct {
	r        *record
	edition  int
	audience string
}

// jwtFlight is a call under way that others wait for. The results are read
// after done.
type jwtFlight struct {
	done      chan struct{}
	svid      JWTSVID
	err       error
	abandoned bool // the caller who made the call went away
}

// FetchJWT returns a JWT-SVID for the audience and each identity that a workload
// with these selectors may have, ordered by entry ID, or for id only when it is
// not zero. Tokens are kept and given out again until half of their life is
// over, and longer while the server is away. An identity other than the first
// whose token cannot be had now is left out. The error is ErrNoIdentity,
// ErrUnavailable with the reason, or the context's.
func (c *Cache) FetchJWT(ctx context.Context, selectors attest.Selectors, audience []string, id spiffeid.ID) ([]JWTSVID, error) {
	sub := c.Subscribe(selectors)
	defer sub.Close()
	_, err := sub.await(ctx, func(g *Grant, p *phase, o occasion) (bool, error) {
		switch {
		case p.synced, o >= late && g.Matched > 0:
			return true, nil
		case o == tooLate:
			return true, notReady(p)
		}
		return false, nil
	})
	if err != nil {
		return nil, err
	}
	records := sub.records(id)
	if len(records) == 0 {
		return nil, ErrNoIdentity
	}
	key := audienceKey(audience)
	out, errs := make([]JWTSVID, len(records)), make([]error, len(records))
	var g errgroup.Group
	g.SetLimit(maxJWTCallsEach)
	for i, r := range records {
		g.Go(func() error {
			out[i], errs[i] = c.jwt(ctx, r, audience, key)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return c.available(out, errs)
}

// available leaves out the identities for which there is no token now, so that
// one that cannot be had does not take the others away. The first is the one a
// workload uses that asks for none: it is never replaced by another.
func (c *Cache) available(svids []JWTSVID, errs []error) ([]JWTSVID, error) {
	kept := make([]JWTSVID, 0, len(svids))
	for i, err := range errs {
		switch {
		case err == nil:
			kept = append(kept, svids[i])
		case errors.Is(err, ErrNoIdentity): // the entry has just gone
		case len(kept) == 0 || !errors.Is(err, ErrUnavailable):
			return nil, err
		default:
			c.log.Warn("a JWT-SVID is not available, the workload gets those of its other identities", telemetry.Err, err)
		}
	}
	if len(kept) == 0 {
		return nil, ErrNoIdentity
	}
	return kept, nil
}

// records are those that match, without those whose hint is another's.
func (s *Subscription) records(id spiffeid.ID) []*record {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	matched := s.view.grantee.records
	keepers := hintKeepers(matched)
	out := make([]*record, 0, len(matched))
	for _, r := range matched {
		hint := r.visible().hint
		if (hint == "" || keepers[hint] == r) && (id.IsZero() || r.entry.spiffeID == id) {
			out = append(out, r)
		}
	}
	return out
}

// audienceKey is the same for the same set.
func audienceKey(audience []string) string {
	set := slices.Compact(slices.Sorted(slices.Values(audience)))
	var b []byte
	for _, a := range set {
		b = binary.AppendUvarint(b, uint64(len(a)))
		b = append(b, a...)
	}
	return string(b)
}

func (c *Cache) jwt(ctx context.Context, r *record, audience []string, key string) (JWTSVID, error) {
	for {
		svid, e, flight, mine := c.jwtHeld(r, key)
		switch {
		case e == nil:
			return JWTSVID{}, ErrNoIdentity
		case flight == nil:
			return svid, nil
		case mine:
			return c.jwtMint(ctx, r, e, audience, key, flight)
		}
		select {
		case <-flight.done:
		case <-ctx.Done():
			return JWTSVID{}, ctx.Err()
		}
		if !flight.abandoned {
			return flight.svid, flight.err
		}
	}
}

// jwtHeld returns a token that will do, or the flight that brings one, which
// may be the caller's to make. No entry: it is gone.
func (c *Cache) jwtHeld(r *record, key string) (svid JWTSVID, e *entry, f *jwtFlight, mine bool) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if e = r.entry; !r.live || e.expired(now) {
		return JWTSVID{}, nil, nil, false
	}
	if t := r.jwts[key]; t != nil && now.Before(t.expires) && (now.Before(t.half) || now.Before(t.retryAt)) {
		c.jwts.MoveToFront(t.used)
		c.metrics.jwtHits.Inc()
		return t.svid(e), e, nil, false
	}
	f = &jwtFlight{done: make(chan struct{})}
	if e.jti {
		return JWTSVID{}, e, f, true // each of them is another token
	}
	k := jwtKey{r, r.edition, key}
	if under := c.jwtFlight[k]; under != nil {
		return JWTSVID{}, e, under, false
	}
	c.jwtFlight[k] = f
	return JWTSVID{}, e, f, true
}

// jwtMint asks the server, on behalf of everyone who waits for the flight.
func (c *Cache) jwtMint(ctx context.Context, r *record, e *entry, audience []string, key string, f *jwtFlight) (JWTSVID, error) {
	c.mu.Lock()
	edition, timeout := r.edition, jwtTimeout
	if old := r.jwts[key]; old != nil && time.Now().Before(old.expires) {
		timeout = jwtTimeoutKept
	}
	c.mu.Unlock()
	t, err := c.jwtSign(ctx, e, audience, timeout)

	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(f.done)
	if c.jwtFlight[jwtKey{r, edition, key}] == f {
		delete(c.jwtFlight, jwtKey{r, edition, key})
	}
	old := r.jwts[key]
	switch {
	case !r.live || r.edition != edition:
		f.err = ErrNoIdentity
		if r.live {
			f.err = fmt.Errorf("%w: the entry has changed meanwhile", ErrUnavailable)
		}
	case err == nil:
		f.svid = t.svid(e)
		if !e.jti {
			c.keepJWT(r, key, t)
		}
	case old != nil && now.Before(old.expires):
		old.tries++
		old.retryAt = now.Add(retryAfter(old.tries))
		f.svid = old.svid(e)
	default:
		f.err, f.abandoned = fmt.Errorf("%w: %w", ErrUnavailable, err), ctx.Err() != nil
	}
	return f.svid, f.err
}

func (c *Cache) jwtSign(ctx context.Context, e *entry, audience []string, timeout time.Duration) (*jwtSVID, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	select {
	case c.jwtSlots <- struct{}{}:
		defer func() { <-c.jwtSlots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("too many JWT-SVIDs are being asked for: %w", ctx.Err())
	}
	start := time.Now()
	token, _, expires, err := c.cfg.Minter.MintJWT(ctx, e.id, audience)
	var t *jwtSVID
	if err == nil {
		t, err = newJWTSVID(e.spiffeID, token, expires, time.Now())
	}
	c.metrics.mintedJWT(err, time.Since(start))
	if err != nil && ctx.Err() == nil {
		c.log.Warn("minting a JWT-SVID", telemetry.EntryID, e.id, telemetry.SPIFFEID, e.spiffeID, telemetry.Err, err)
	}
	return t, err
}

// newJWTSVID checks that the token is the one asked for. The signature is the
// verifier's business.
func newJWTSVID(id spiffeid.ID, token string, expires, now time.Time) (*jwtSVID, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, errors.New("the server's token is not a JWS in compact serialization")
	}
	var header struct {
		KeyID string `json:"kid"`
	}
	var claims struct {
		Subject string `json:"sub"`
	}
	if err := errors.Join(decodePart(parts[0], &header), decodePart(parts[1], &claims)); err != nil {
		return nil, fmt.Errorf("the server's token: %w", err)
	}
	if claims.Subject != id.String() {
		return nil, fmt.Errorf("the server's token is not for %s", id)
	}
	if !now.Before(expires) {
		return nil, fmt.Errorf("the server's token has ended at %s, %s ago: is this machine's clock right?",
			expires.UTC().Format(time.RFC3339), now.Sub(expires).Round(time.Second))
	}
	return &jwtSVID{token: token, keyID: header.KeyID, half: now.Add(expires.Sub(now) / 2), expires: expires}, nil
}

func decodePart(part string, v any) error {
	raw, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return errors.New("a part is not base64url") // the library's error can quote the token
	}
	if json.Unmarshal(raw, v) != nil {
		return errors.New("a part is not JSON")
	}
	return nil
}

func (t *jwtSVID) svid(e *entry) JWTSVID {
	return JWTSVID{EntryID: e.id, SPIFFEID: e.spiffeID, Hint: e.hint, Token: t.token, ExpiresAt: t.expires}
}

// keepJWT keeps a token for another call, in place of the one used longest ago
// when there are too many.
func (c *Cache) keepJWT(r *record, key string, t *jwtSVID) {
	c.dropJWT(r, key)
	if r.jwts == nil {
		r.jwts = map[string]*jwtSVID{}
	}
	t.r, t.audience = r, key
	t.used = c.jwts.PushFront(t)
	r.jwts[key] = t
	if c.jwts.Len() > c.cfg.MaxJWTSVIDs {
		last := c.jwts.Back().Value.(*jwtSVID)
		c.dropJWT(last.r, last.audience)
	}
}

func (c *Cache) dropJWT(r *record, key string) {
	if t := r.jwts[key]; t != nil {
		c.jwts.Remove(t.used)
		delete(r.jwts, key)
	}
}

func (c *Cache) dropJWTs(r *record) {
	for key := range r.jwts {
		c.dropJWT(r, key)
	}
}
