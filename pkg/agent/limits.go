package agent

import (
	"github.com/credence-id/credence/pkg/agent/peer"
	"github.com/credence-id/credence/pkg/agent/workloadapi"
)

// Limits of the Workload API's socket. The processes of one user get at most
// half of what those of others leave of connections and calls.
const (
	maxConnections = 16384
	maxCalls       = 32768
	// filesPerConnection are the socket, the process, its directory in /proc
	// and a file there, and one to spare.
	filesPerConnection = 5
	// spareFiles are left to everything else.
	spareFiles = 128
	// connBytes and userBytes bound the messages that were begun and not ended,
	// of one connection and of one user's. A message has at most 256 KiB; a
	// call that waits for its message counts 4 KiB.
	connBytes = 2 << 20
	userBytes = 64 << 20
)

// socketLimits are what a process that may have so many open files can keep.
func socketLimits(files int) peer.Limits {
	return peer.Limits{
		Connections: min(maxConnections, max(16, (files-spareFiles)/filesPerConnection)),
		Calls:       maxCalls,
		ConnBytes:   connBytes,
		UserBytes:   userBytes,
	}
}

// rates are those of the section experimental.ratelimit.
func (r RateLimit) rates() workloadapi.Rates {
	return workloadapi.Rates{
		FetchX509SVID: r.FetchX509SVID, FetchJWTSVID: r.FetchJWTSVID,
		FetchX509Bundles: r.FetchX509Bundles, FetchJWTBundles: r.FetchJWTBundles,
	}
}

// negative is the key of a rate that cannot be, or nothing.
func (r RateLimit) negative() string {
	for _, k := range []struct {
		key  string
		rate int
	}{
		{"fetch_x509_svid", r.FetchX509SVID}, {"fetch_jwt_svid", r.FetchJWTSVID},
		{"fetch_x509_bundles", r.FetchX509Bundles}, {"fetch_jwt_bundles", r.FetchJWTBundles},
		{"stream_secrets", r.StreamSecrets}, {"fetch_secrets", r.FetchSecrets},
	} {
		if k.rate < 0 {
			return k.key
		}
	}
	return ""
}
