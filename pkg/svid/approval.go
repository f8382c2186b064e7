package svid

import (
	"crypto"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"sync/atomic"
)

// Sentinel errors, tested with errors.Is.
var (
	// ErrRefused is returned for a request that breaks its profile. The text
	// names the rule and the field, and may be shown to the client.
	ErrRefused = errors.New("refused by profile")
	// ErrInvalid is returned for a token, or a CSR, that must not be accepted.
	// The text never holds the input.
	ErrInvalid = errors.New("invalid")
	// ErrExpired is returned when the authority has no lifetime left to give.
	ErrExpired = errors.New("authority is outside its validity")
	// ErrUsed is returned by the second use of an approval.
	ErrUsed = errors.New("approval was used already")
)

// The life of an approval.
const (
	approved int32 = iota
	taken
	sealed
)

// approval is content that passed its profile and is to be signed once.
type approval struct {
	tbs   []byte
	hash  crypto.Hash
	state atomic.Int32
}

// Take gives out the digest to be signed, and the hash it was made with, once;
// then it returns ErrUsed. With an RSA key the padding is PKCS #1 v1.5.
func (a *approval) Take() (digest []byte, opts crypto.SignerOpts, err error) {
	if !a.state.CompareAndSwap(approved, taken) {
		return nil, nil, ErrUsed
	}
	switch a.hash {
	case crypto.SHA256:
		sum := sha256.Sum256(a.tbs)
		return sum[:], a.hash, nil
	case crypto.SHA384:
		sum := sha512.Sum384(a.tbs)
		return sum[:], a.hash, nil
	default:
		sum := sha512.Sum512(a.tbs)
		return sum[:], crypto.SHA512, nil
	}
}

// seal says whether the signature may be attached: after Take, once.
func (a *approval) seal() error {
	if !a.state.CompareAndSwap(taken, sealed) {
		return ErrUsed
	}
	return nil
}
