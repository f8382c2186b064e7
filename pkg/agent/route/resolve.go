package route

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/credence-id/credence/pkg/telemetry"
)

const (
	// lookupTimeout bounds finding out what a name stands for, and lookupAgain
	// when that was known before and may be used again.
	lookupTimeout = 5 * time.Second
	lookupAgain   = time.Second
)

// resolve asks anew what the names stand for. One that cannot be resolved now
// stands for what it last did.
func (r *Route) resolve(ctx context.Context) ([]candidate, error) {
	found := make([][]candidate, len(r.cfg.Addresses))
	errs := make([]error, len(r.cfg.Addresses))
	var lookups sync.WaitGroup
	for i, address := range r.cfg.Addresses {
		lookups.Go(func() { found[i], errs[i] = r.candidates(ctx, address) })
	}
	lookups.Wait()
	var out []candidate
	for _, c := range slices.Concat(found...) {
		same := func(o candidate) bool { return o.address == c.address }
		if !slices.ContainsFunc(out, same) {
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("finding the server: %w", failed(errs...))
	}
	return out, nil
}

// candidates are what one configured address stands for.
func (r *Route) candidates(ctx context.Context, address string) ([]candidate, error) {
	asIs := candidate{address: address, authority: address}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	_, notIP := netip.ParseAddr(host)
	switch {
	case r.cfg.Dial != nil:
		return []candidate{asIs}, nil
	case proxied(address):
		asIs.proxied = true
		return []candidate{asIs}, nil
	case notIP == nil:
		return []candidate{asIs}, nil
	}
	addrs, err := r.lookup(ctx, host)
	if err != nil {
		return nil, err
	}
	var out []candidate
	for _, a := range addrs {
		out = append(out, candidate{address: net.JoinHostPort(a.Unmap().String(), port), authority: address})
	}
	return out, nil
}

func (r *Route) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	r.mu.Lock()
	known := r.found[host]
	r.mu.Unlock()
	timeout := lookupTimeout
	if len(known) > 0 {
		timeout = lookupAgain
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	addrs, err := r.cfg.Lookup(ctx, host)
	switch {
	case err != nil && len(known) > 0:
		r.cfg.Log.WarnContext(ctx, "the server's name cannot be resolved now: going by what it last stood for", telemetry.Name, host, telemetry.Err, err)
		return known, nil
	case err != nil:
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.found[host] = addrs
	return addrs, nil
}

// proxied says whether the machine's proxy settings (HTTPS_PROXY, NO_PROXY) put
// a proxy before the address. gRPC goes by them, and so a name behind a proxy is
// for the proxy to resolve.
func proxied(address string) bool {
	via, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: address}})
	return err == nil && via != nil
}
