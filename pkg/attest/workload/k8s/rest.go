package k8s

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	// maxList bounds an answer with a list, in bytes: a node has at most some
	// hundreds of pods, and an object at most 1.5 MiB.
	maxList = 64 << 20
	// maxEvent bounds one event of a watch, in bytes.
	maxEvent = 4 << 20
	// maxCredential bounds a file with a token, a certificate or authorities.
	maxCredential = 1 << 20
	// requestTimeout bounds a request whose answer ends by itself, and for a
	// watch the time to the beginning of its answer.
	requestTimeout = 10 * time.Second
	// pingAfter is how long a connection is silent before it is pinged, and
	// pingTimeout how long that may take: a watch can be silent for minutes.
	pingAfter   = 10 * time.Second
	pingTimeout = 5 * time.Second
)

// statusError is an answer other than 200.
type statusError struct {
	who     string
	code    int
	message string // what the answer says, shortened
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("%s answered %d %s", e.who, e.code, http.StatusText(e.code))
	if e.message != "" {
		text += ": " + e.message
	}
	return text
}

// denied says whether err is an answer that more tries will not change.
func denied(err error) bool {
	e, ok := errors.AsType[*statusError](err)
	return ok && (e.code == http.StatusForbidden || e.code == http.StatusUnauthorized)
}

// gone says whether err is that a watch cannot go on from where it was.
func gone(err error) bool {
	e, ok := errors.AsType[*statusError](err)
	return ok && e.code == http.StatusGone
}

// endpoint is a server, and how to be known to it.
type endpoint struct {
	name   string // in errors
	base   string // URL without a path
	caPath string
	// anyone: whoever answers is believed. anyName: of the authorities in
	// caPath any certificate will do, whatever name it is for.
	anyone, anyName bool
	tokenPath       string
	certPath        string
	keyPath         string
	reload          time.Duration
}

// client speaks to one server. What it read of files is read again when it is
// older than reload, as tokens and authorities rotate.
type client struct {
	endpoint

	mu     sync.Mutex
	readAt time.Time // guarded by mu, as the rest; zero: read at once
	files  files
	http   *http.Client
	token  string
}

// files are the contents that a transport is made of.
type files struct{ ca, cert, key string }

func newClient(e endpoint) *client { return &client{endpoint: e} }

// get asks for a path with its query, and once more when the token was replaced
// meanwhile. The caller closes the body.
func (c *client) get(ctx context.Context, path, accept string) (*http.Response, error) {
	do, token, err := c.current()
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", c.name, err)
	}
	resp, err := c.try(ctx, do, token, path, accept)
	if e, ok := errors.AsType[*statusError](err); !ok || e.code != http.StatusUnauthorized {
		return resp, err
	}
	c.mu.Lock()
	c.readAt = time.Time{}
	c.mu.Unlock()
	do, again, readErr := c.current()
	if readErr != nil || again == token {
		return nil, err
	}
	return c.try(ctx, do, again, path, accept)
}

func (c *client) try(ctx context.Context, do *http.Client, token, path, accept string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w", c.name, err)
	}
	req.Header.Set("Accept", accept)
	req.Header.Set("User-Agent", "credence-agent")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := do.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the query, which names the node
		}
		return nil, fmt.Errorf("asking %s: %w", c.name, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	return nil, &statusError{who: c.name, code: resp.StatusCode, message: explanation(resp.Body)}
}

// list fills into from the answer, which is a list.
func (c *client) list(ctx context.Context, path, accept string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := c.get(ctx, path, accept)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body := &io.LimitedReader{R: resp.Body, N: maxList + 1}
	if err := json.NewDecoder(body).Decode(into); err != nil {
		if body.N <= 0 {
			return fmt.Errorf("reading what %s answered: it is longer than %d bytes", c.name, maxList)
		}
		return fmt.Errorf("reading what %s answered: %w", c.name, notJSON(err))
	}
	return nil
}

// notJSON keeps a value that could not be read out of the error.
func notJSON(err error) error {
	if _, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return errors.New("a value has not the type that Kubernetes gives it")
	}
	return err
}

// explanation is what the body of an error says, on one line.
func explanation(body io.Reader) string {
	const most = 300
	text, err := io.ReadAll(io.LimitReader(body, 16<<10))
	if err != nil {
		return ""
	}
	var status struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(text, &status) == nil && status.Message != "" {
		text = []byte(status.Message)
	}
	line := strings.Join(strings.FieldsFunc(string(text), func(r rune) bool { return r <= ' ' || r == 0x7f }), " ")
	return strings.ToValidUTF8(line[:min(len(line), most)], "")
}

// current reads the files if they are old.
func (c *client) current() (*http.Client, string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.http != nil && !c.readAt.IsZero() && time.Since(c.readAt) < c.reload {
		return c.http, c.token, nil
	}
	token, f, err := c.read()
	if err != nil {
		return nil, "", err
	}
	if c.http == nil || f != c.files {
		transport, err := c.transport(f)
		if err != nil {
			return nil, "", err
		}
		if c.http != nil {
			c.http.CloseIdleConnections()
		}
		c.http = &http.Client{
			Transport: transport,
			// A token is for nobody else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	c.files, c.token, c.readAt = f, token, time.Now()
	return c.http, token, nil
}

func (c *client) read() (token string, f files, err error) {
	ca := c.caPath
	if c.anyone {
		ca = ""
	}
	for _, from := range [...]struct {
		path string
		to   *string
	}{{c.tokenPath, &token}, {ca, &f.ca}, {c.certPath, &f.cert}, {c.keyPath, &f.key}} {
		if from.path == "" {
			continue
		}
		if *from.to, err = readCredential(from.path); err != nil {
			return "", files{}, err
		}
	}
	return strings.TrimSpace(token), f, nil
}

func readCredential(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxCredential+1))
	switch {
	case err != nil:
		return "", err
	case len(text) > maxCredential:
		return "", fmt.Errorf("%s is longer than %d bytes", path, maxCredential)
	case len(bytes.TrimSpace(text)) == 0:
		return "", fmt.Errorf("%s is empty", path)
	}
	return string(text), nil
}

func (c *client) transport(f files) (*http.Transport, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.ca != "" {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM([]byte(f.ca)) {
			return nil, fmt.Errorf("%s has no certificate", c.caPath)
		}
	}
	switch {
	case c.anyone:
		conf.InsecureSkipVerify = true // skip_kubelet_verification says so
	case c.anyName:
		conf.InsecureSkipVerify = true // verified below, but for the name
		conf.SessionTicketsDisabled = true
		roots := conf.RootCAs
		conf.VerifyConnection = func(s tls.ConnectionState) error { return verifyChain(s, roots) }
	}
	if f.cert != "" {
		pair, err := tls.X509KeyPair([]byte(f.cert), []byte(f.key))
		if err != nil {
			return nil, fmt.Errorf("%s and %s: %w", c.certPath, c.keyPath, err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return &http.Transport{
		DialContext:           (&net.Dialer{Timeout: requestTimeout, KeepAlive: pingAfter}).DialContext,
		TLSClientConfig:       conf,
		TLSHandshakeTimeout:   requestTimeout,
		ResponseHeaderTimeout: requestTimeout,
		IdleConnTimeout:       2 * time.Minute,
		MaxIdleConnsPerHost:   2,
		ForceAttemptHTTP2:     true,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}, nil
}

func verifyChain(s tls.ConnectionState, roots *x509.CertPool) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("no certificate")
	}
	between := x509.NewCertPool()
	for _, cert := range s.PeerCertificates[1:] {
		between.AddCert(cert)
	}
	_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between})
	return err
}

func joinHostPort(host, port string) string { return net.JoinHostPort(strings.Trim(host, "[]"), port) }
