package svid

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"

	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// Limits of RSA keys. The upper ones bound what a stranger can make us compute
// (S07): a verification costs the square of the modulus' length, times the
// length of the exponent.
const (
	minRSABits     = 2048
	maxRSABits     = 4096
	minRSAExponent = 65537
	maxRSAExponent = 1<<31 - 1
)

// checkKey says whether a key of this type may be certified.
func checkKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			return nil
		}
		return fmt.Errorf("%w: public key: the curve is not P-256, P-384 or P-521", ErrRefused)
	case *rsa.PublicKey:
		return checkRSA(k)
	default:
		return fmt.Errorf("%w: public key: type %T is not EC or RSA", ErrRefused, pub)
	}
}

// CheckJWK says whether a public key can be part of a JWKS (RFC 7518, 6.2 and
// 6.3; RFC 8037), and so of a bundle that others shall read: one key that is
// none would cost them all of it. Some that can do not verify any SVID. The
// error is an [ErrInvalid].
func CheckJWK(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *rsa.PublicKey, ed25519.PublicKey:
		return nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() || k.Curve == elliptic.P521() {
			return nil
		}
		return fmt.Errorf("%w: public key: a JWKS cannot have one of the curve %s", ErrInvalid, k.Curve.Params().Name)
	}
	return fmt.Errorf("%w: public key: a JWKS cannot have one of type %T", ErrInvalid, pub)
}

func checkRSA(k *rsa.PublicKey) error {
	switch bits := k.N.BitLen(); {
	case bits < minRSABits || bits > maxRSABits:
		return fmt.Errorf("%w: public key: RSA of %d bits is not between %d and %d", ErrRefused, bits, minRSABits, maxRSABits)
	case k.N.Bit(0) == 0:
		return fmt.Errorf("%w: public key: the RSA modulus is even", ErrRefused)
	case k.E < minRSAExponent || k.E > maxRSAExponent || k.E%2 == 0:
		return fmt.Errorf("%w: public key: the RSA exponent is not odd and between %d and %d", ErrRefused, minRSAExponent, maxRSAExponent)
	}
	return nil
}

// DER AlgorithmIdentifiers of EC public keys: id-ecPublicKey and the curve
// (RFC 5480, 2.1.1).
var (
	algP256 = []byte{0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}
	algP384 = []byte{0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22}
	algP521 = []byte{0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23}
)

// spki is a SubjectPublicKeyInfo and the key identifier made from it.
type spki struct {
	der   []byte
	keyID []byte
}

// encodeKey checks the key and writes its SubjectPublicKeyInfo from its
// numbers, so that no byte of a CSR is copied into a certificate.
func encodeKey(pub crypto.PublicKey) (spki, error) {
	if err := checkKey(pub); err != nil {
		return spki{}, err
	}
	var alg, bits []byte
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil {
			return spki{}, fmt.Errorf("%w: public key: the point is not on its curve", ErrRefused)
		}
		bits = point
		switch k.Curve {
		case elliptic.P256():
			alg = algP256
		case elliptic.P384():
			alg = algP384
		default:
			alg = algP521
		}
	case *rsa.PublicKey:
		alg = []byte{0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00}
		bits = x509.MarshalPKCS1PublicKey(k)
	}

	w := newWriter(len(alg) + len(bits) + 16)
	at := w.open(cbasn1.SEQUENCE)
	w.bytes(alg)
	w.bitString(bits)
	w.close(at)
	// RFC 7093, 2, method 1: the leftmost 160 bits of SHA-256.
	sum := sha256.Sum256(bits)
	return spki{der: w.der, keyID: sum[:20]}, nil
}
