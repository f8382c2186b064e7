package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/credence-id/credence/pkg/svid"
	"github.com/credence-id/credence/pkg/telemetry"
)

// signer is what one authority signs with. It is not changed once installed,
// and stays usable by those who hold it when another takes its place.
type signer struct {
	member *member
	x509   *svid.X509Issuer
	jwt    *svid.JWTIssuer
	// warned is set when a TTL was cut short by this authority's end.
	warned atomic.Bool
}

// approval is content that package svid found fit to be signed.
type approval interface {
	Take() (digest []byte, opts crypto.SignerOpts, err error)
}

// sign is the only place that uses an authority's private key for SVIDs.
func (s *signer) sign(a approval) ([]byte, error) {
	digest, opts, err := a.Take()
	if err != nil {
		return nil, err
	}
	signature, err := s.member.key.Sign(rand.Reader, digest, opts)
	if err != nil {
		return nil, fmt.Errorf("signing with key %q: %w", s.member.slot, err)
	}
	return signature, nil
}

// ready returns what may sign now.
func (r *rotor) ready(now time.Time) (*signer, error) {
	if now.UnixNano() >= r.due.Load() {
		r.poke()
	}
	s := r.signer.Load()
	switch {
	case s == nil:
		return nil, fmt.Errorf("%s %w: no key is active", r.name(), ErrNotReady)
	case r.missing.Load():
		return nil, fmt.Errorf("%s %w: its key is not in the bundle and is being published again", r.name(), ErrNotReady)
	}
	return s, nil
}

// refusal makes an authority that ran out heal, and its error temporary.
func (r *rotor) refusal(err error) error {
	if errors.Is(err, svid.ErrExpired) {
		r.poke()
		return fmt.Errorf("%s %w: %w", r.name(), ErrNotReady, err)
	}
	return err
}

// IssueX509 signs an X509-SVID. A zero TTL means the configured default of the
// kind; a longer one than the authority's remaining life is cut short, which is
// logged once per authority. It returns ErrNotReady, svid.ErrRefused, or the key
// manager's error.
func (a *Authority) IssueX509(_ context.Context, now time.Time, req svid.X509Request) (*svid.X509SVID, error) {
	s, err := a.x509.ready(now)
	if err != nil {
		return nil, a.metrics.refused(a.x509, err)
	}
	if req.TTL == 0 {
		req.TTL = a.cfg.X509SVIDTTL
		if req.Kind == svid.Agent {
			req.TTL = a.cfg.AgentTTL
		}
	}
	random, err := random16()
	if err != nil {
		return nil, err
	}
	approved, err := s.x509.Approve(now, random, req)
	if err != nil {
		return nil, a.metrics.refused(a.x509, a.x509.refusal(err))
	}
	signature, err := s.sign(approved)
	if err != nil {
		return nil, a.metrics.refused(a.x509, err)
	}
	out, err := approved.Seal(signature)
	if err != nil {
		return nil, err
	}
	if out.Capped {
		a.warnCapped(s, "x509", req.EntryID, req.TTL)
	}
	a.record(Issued{
		Kind: "x509", Serial: out.Serial, SPIFFEID: req.ID.String(), EntryID: req.EntryID, AgentID: req.AgentID.String(),
		AuthorityID: s.member.id, NotAfter: out.NotAfter,
	})
	return out, nil
}

// IssueJWT signs a JWT-SVID. A zero TTL means the configured default. It
// returns ErrNotReady, svid.ErrRefused, or the key manager's error.
func (a *Authority) IssueJWT(_ context.Context, now time.Time, req svid.JWTRequest) (*svid.JWTSVID, error) {
	s, err := a.jwt.ready(now)
	if err != nil {
		return nil, a.metrics.refused(a.jwt, err)
	}
	if req.TTL == 0 {
		req.TTL = a.cfg.JWTSVIDTTL
	}
	var jti string
	if req.IncludeJTI {
		random, err := random16()
		if err != nil {
			return nil, err
		}
		jti = hex.EncodeToString(random[:])
	}
	approved, err := s.jwt.Approve(now, jti, req)
	if err != nil {
		return nil, a.metrics.refused(a.jwt, a.jwt.refusal(err))
	}
	if s.member.ledger.enter(approved.ExpiresAt().Unix()) {
		a.jwt.poke()
	}
	signature, err := s.sign(approved)
	if err != nil {
		return nil, a.metrics.refused(a.jwt, err)
	}
	out, err := approved.Seal(signature)
	if err != nil {
		return nil, err
	}
	if out.Capped {
		a.warnCapped(s, "jwt", req.EntryID, req.TTL)
	}
	a.record(Issued{
		Kind: "jwt", Serial: jti, SPIFFEID: req.ID.String(), EntryID: req.EntryID, AgentID: req.AgentID.String(),
		AuthorityID: s.member.id, NotAfter: out.ExpiresAt,
	})
	return out, nil
}

func (a *Authority) warnCapped(s *signer, kind, entryID string, ttl time.Duration) {
	if s.warned.Swap(true) {
		return
	}
	a.cfg.Logger.Warn("authority: TTL reaches beyond the authority's end, SVIDs live shorter: lower the entry's TTL or raise ca_ttl",
		telemetry.SVIDKind, kind, telemetry.EntryID, entryID, keyTTL, ttl, keyAuthority, s.member.id, keyNotAfter, s.member.notAfter)
}

func (a *Authority) record(i Issued) {
	a.metrics.issued(i.Kind)
	if a.cfg.OnIssue != nil {
		a.cfg.OnIssue(i)
	}
	a.issued.add(i)
}
