package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// hangUp closes what nothing more is expected of.
func hangUp(c io.Closer) { _ = c.Close() }

// serve answers every connection of its trust domain with a byte.
func serve(ctx context.Context) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer hangUp(source)
	config := tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeAny())
	lis, err := tls.Listen("tcp", ":8443", config) //nolint:gosec // of a pod
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { hangUp(lis) })
	tell(event{What: "serving"})
	var served sync.WaitGroup
	defer served.Wait()
	for {
		conn, err := lis.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		served.Go(func() {
			defer hangUp(conn)
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := conn.Write([]byte{1}); err != nil {
				tell(event{What: "served", Error: err.Error()})
			}
		})
	}
}

// call makes a new connection each 50 ms, and tells of each that fails and each
// twentieth that does not.
func call(ctx context.Context) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer hangUp(source)
	config := tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeAny())
	every := time.NewTicker(50 * time.Millisecond)
	defer every.Stop()
	for n := 1; ; n++ {
		if err := handshake(ctx, config); err != nil && ctx.Err() == nil {
			tell(event{What: "broken", Count: n, Error: err.Error()})
		} else if n%20 == 1 {
			tell(event{What: "called", Count: n})
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func handshake(ctx context.Context, config *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	d := tls.Dialer{Config: config}
	conn, err := d.DialContext(ctx, "tcp", os.Getenv("PEER"))
	if err != nil {
		return err
	}
	defer hangUp(conn)
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}
