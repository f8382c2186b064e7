package tlspolicy

import (
	"crypto/tls"
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
