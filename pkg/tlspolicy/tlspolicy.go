package tlspolicy

import (
	"crypto/tls"
	"errors"
	"slices"
	"strings"
)

// postQuantum are the key exchanges with ML-KEM that Go speaks; all are hybrids
// and need TLS 1.3.
var postQuantum = []tls.CurveID{tls.X25519MLKEM768, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024}

// RequirePostQuantum makes cfg refuse every other key exchange, and with it TLS
// below 1.3.
func RequirePostQuantum(cfg *tls.Config) {
	cfg.CurvePreferences = slices.Clone(postQuantum)
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS13)
}

// PostQuantum says whether the connection's key exchange withstands a quantum
// computer.
func PostQuantum(s tls.ConnectionState) bool { return slices.Contains(postQuantum, s.CurveID) }

// NoCommonKeyExchange says whether err is what a server's handshake fails with
// when the two sides share no key exchange.
func NoCommonKeyExchange(err error) bool {
	return err != nil && strings.Contains(err.Error(), "tls: no key exchanges supported by both client and server")
}

// Refused says whether err is what a client's handshake fails with when a
// server finds nothing in common with it. TLS does not say what was missing
// (RFC 8446, section 6.2).
func Refused(err error) bool {
	alert, ok := errors.AsType[tls.AlertError](err)
	return ok && alert == handshakeFailure || err != nil && strings.Contains(err.Error(), "remote error: tls: handshake failure")
}

// handshakeFailure is the alert of that name.
const handshakeFailure tls.AlertError = 40
