package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

const (
	// fetchTimeout bounds getting a trust bundle over the network.
	fetchTimeout = 30 * time.Second
	// maxBundle bounds a trust bundle that comes over the network, in bytes.
	maxBundle = 4 << 20
	// maxRedirects bounds how often a server may send the agent elsewhere.
	maxRedirects = 5
)

// asked is what the agent says about itself when it asks a Unix socket for its
// trust bundle, in SPIRE's words.
type asked struct {
	again    bool // the first contact was long ago
	attempts int
	since    time.Time
}

// bootstrapBundle gets what the first contact with the server is verified with.
// A file that cannot be used is fatal, as nothing will become of it; what comes
// from elsewhere is tried again.
func (a *Agent) bootstrapBundle(ctx context.Context) (*x509bundle.Bundle, error) {
	s := &a.config.Agent
	switch {
	case s.TrustBundleWorkloadAPI != "":
		return a.bundleOfWorkloadAPI(ctx)
	case s.TrustBundleURL != "":
		a.asked.attempts++
		if a.asked.since.IsZero() {
			a.asked.since = time.Now()
		}
		data, err := s.download(ctx, a.asked)
		if err != nil {
			return nil, fmt.Errorf("agent.trust_bundle_url: %w", err)
		}
		b, err := parseBundle(a.trust.td, data, s.TrustBundleFormat)
		if err == nil && b.Empty() {
			err = errors.New("it has no certificate")
		}
		if err != nil {
			return nil, fmt.Errorf("agent.trust_bundle_url: what it gave is no trust bundle: %w", err)
		}
		a.asked = asked{again: true}
		return b, nil
	default:
		b, err := loadBundle(a.trust.td, s.TrustBundlePath, s.TrustBundleFormat)
		if err != nil {
			return nil, fatal(a.config.file.Errorf("agent.trust_bundle_path", "%w", err))
		}
		return b, nil
	}
}

// bundleOfWorkloadAPI asks the agent of which this node is a workload.
func (a *Agent) bundleOfWorkloadAPI(ctx context.Context) (*x509bundle.Bundle, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	set, err := workloadapi.FetchX509Bundles(ctx, workloadapi.WithAddr(a.config.Agent.TrustBundleWorkloadAPI))
	if err != nil {
		return nil, fmt.Errorf("agent.trust_bundle_spiffe_workload_api: %w", err)
	}
	b, err := set.GetX509BundleForTrustDomain(a.trust.td)
	if err != nil {
		return nil, fmt.Errorf("agent.trust_bundle_spiffe_workload_api: it has no bundle of %s: %w", a.trust.td, err)
	}
	if b.Empty() {
		return nil, fmt.Errorf("agent.trust_bundle_spiffe_workload_api: the bundle of %s has no X.509 authority", a.trust.td)
	}
	return b, nil
}

// download gets what trust_bundle_url names: over https verified by the
// machine's roots, or over http from the Unix socket. No text of the answer is
// in an error.
func (s *Section) download(ctx context.Context, who asked) (data []byte, err error) {
	u, err := url.Parse(s.TrustBundleURL)
	if err != nil {
		return nil, errors.New("is not a URL")
	}
	transport := &http.Transport{DisableKeepAlives: true, Proxy: http.ProxyFromEnvironment}
	if s.TrustBundleUnixSocket != "" {
		transport.Proxy = nil
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", s.TrustBundleUnixSocket)
		}
		u.RawQuery = s.introduce(u.Query(), who).Encode()
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, errors.New("is not a URL")
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(next *http.Request, via []*http.Request) error {
		if next.URL.Scheme != u.Scheme || len(via) >= maxRedirects {
			return errors.New("the server redirects too often, or away from https")
		}
		return nil
	}}
	resp, err := client.Do(req)
	if err != nil {
		if at, ok := errors.AsType[*url.Error](err); ok {
			err = at.Err // without the URL, whose query may be a secret
		}
		return nil, fmt.Errorf("asking %s: %w", u.Host, err)
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the server answered %q", resp.Status)
	}
	if data, err = io.ReadAll(io.LimitReader(resp.Body, maxBundle+1)); err != nil {
		return nil, err
	}
	if len(data) > maxBundle {
		return nil, fmt.Errorf("the answer is larger than %d bytes", maxBundle)
	}
	return data, nil
}

// introduce adds to the query who asks.
func (s *Section) introduce(q url.Values, who asked) url.Values {
	mode := "bootstrap"
	if who.again {
		mode = "rebootstrap"
	}
	q.Set("spire-attest-mode", mode)
	q.Set("spire-connection-attempts", strconv.Itoa(who.attempts))
	q.Set("spire-attest-start-time", who.since.Format(time.RFC3339))
	host, port, _ := net.SplitHostPort(s.servers()[0]) // it was validated
	q.Set("spire-server-address", host)
	q.Set("spire-server-port", port)
	q.Set("spiffe-trust-domain", s.TrustDomain)
	return q
}
