package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
)

// MaxID bounds a key's id, in bytes.
const MaxID = 128

// ErrInvalidID is returned by Generate for an id that breaks [CheckID].
var ErrInvalidID = errors.New("key id is not valid")

// CheckID wants 1 to MaxID letters, digits, hyphens, underscores and dots, the
// first of them no dot, so that an id can be a file's name or a URL's segment
// wherever a manager keeps keys. It returns ErrInvalidID.
func CheckID(id string) error {
	if len(id) == 0 || len(id) > MaxID {
		return fmt.Errorf("%w: %d bytes are not between 1 and %d", ErrInvalidID, len(id), MaxID)
	}
	for i := range len(id) {
		c := id[i]
		word := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.' && i > 0
		if !word {
			return fmt.Errorf("%w: byte %d is %q; use letters, digits, '-', '_' and '.', and do not begin with '.'", ErrInvalidID, i, c)
		}
	}
	return nil
}

// New makes a private key, for managers that hold keys in this process.
func New(t Type) (crypto.Signer, error) {
	switch t {
	case ECP256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case ECP384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	default:
		return nil, fmt.Errorf("no keys of type %s are made", t)
	}
}

// TypeOf returns the type of a key by its public half.
func TypeOf(pub crypto.PublicKey) (Type, error) {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return ECP256, nil
		case elliptic.P384():
			return ECP384, nil
		}
	case *rsa.PublicKey:
		switch k.N.BitLen() {
		case 2048:
			return RSA2048, nil
		case 4096:
			return RSA4096, nil
		}
	}
	return 0, fmt.Errorf("a key of type %T and its size is none of ec-p256, ec-p384, rsa-2048 and rsa-4096", pub)
}

// opaque signs with a key and shows nothing else of it.
type opaque struct{ key crypto.Signer }

// Opaque hides a private key behind its signing method, so that a type
// assertion on a [Key]'s Signer cannot take it out.
func Opaque(key crypto.Signer) crypto.Signer { return opaque{key} }

// Public is the public half.
func (o opaque) Public() crypto.PublicKey { return o.key.Public() }

// Sign is the key's own.
func (o opaque) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return o.key.Sign(rand, digest, opts)
}

// String and GoString keep a key that is printed by mistake out of the text.
func (opaque) String() string { return "private key" }

// GoString is String.
func (opaque) GoString() string { return "private key" }
