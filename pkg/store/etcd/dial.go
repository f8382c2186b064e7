package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// A connection over which nothing comes is asked after keepaliveTime, and given
// up keepaliveTimeout later. gRPC takes no less than 10 s.
const (
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 3 * time.Second
)

// redial bounds the pauses between attempts to connect to a member that is
// away: one that is back is used within a second or two.
var redial = backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}

// dial makes a client. It connects in the background, except that with a
// username it fetches a token first. life is what the client lives in.
func dial(life context.Context, cfg Config) (*clientv3.Client, error) {
	tlsConfig, err := cfg.tls()
	if err != nil {
		return nil, err
	}
	hang := newHangup()
	c, err := clientv3.New(clientv3.Config{
		Context:              life,
		Endpoints:            cfg.Endpoints,
		DialTimeout:          cfg.DialTimeout,
		DialKeepAliveTime:    keepaliveTime,
		DialKeepAliveTimeout: keepaliveTimeout,
		PermitWithoutStream:  true,
		TLS:                  tlsConfig,
		Username:             cfg.Username,
		Password:             cfg.Password,
		Logger:               zap.NewNop(), // What matters is said by this package.
		MaxUnaryRetries:      2,            // Once more, with a new token; the rest is retried here.
		DialOptions: []grpc.DialOption{
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: redial, MinConnectTimeout: 2 * time.Second}),
			grpc.WithContextDialer(hang.dial),
			grpc.WithChainUnaryInterceptor(hang.intercept),
		},
	})
	if err != nil {
		return nil, explain("connecting", err)
	}
	return c, nil
}

// tls reads the files, or returns nil for http.
func (c *Config) tls() (*tls.Config, error) {
	if !strings.HasPrefix(c.Endpoints[0], "https://") {
		return nil, nil
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, &FieldError{"ca_file", fmt.Errorf("cannot be read: %w", err)}
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, &FieldError{"ca_file", fmt.Errorf("%s holds no certificate in PEM", c.CAFile)}
		}
	}
	if c.CertFile != "" {
		load := func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			if err != nil {
				return nil, &FieldError{"cert_file", fmt.Errorf("and key_file cannot be used: %w", err)}
			}
			return &cert, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		out.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return out, nil
}

// Check says what [Open] would refuse of what can be looked at without
// connecting: the fields, and the files they name. It changes nothing.
func Check(cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	_, err := cfg.tls()
	return errors.Join(err)
}
