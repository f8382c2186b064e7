package peers

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// handshakePause is between two handshakes.
const handshakePause = 10 * time.Millisecond

// talk is two workloads that talk mutual TLS, a new connection each time, and
// what came of it.
type talk struct {
	began time.Time
	end   func()

	mu     sync.Mutex
	done   int
	failed []string
	pairs  map[[2]string]int // authorities of client and server
}

// startTalk lets the workloads /client and /server talk until stop.
func startTalk(t *testing.T, client, server *workloadapi.X509Source) *talk {
	t.Helper()
	id := func(path string) spiffeid.ID { return spiffeid.RequireFromPath(testTD, path) }
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &talk{began: time.Now(), pairs: map[[2]string]int{}}
	ctx, cancel := context.WithCancel(context.Background()) // beyond t.Context, which ends before cleanups
	var calls, wg sync.WaitGroup
	wg.Go(func() {
		k.serve(&wg, lis, tlsconfig.MTLSServerConfig(server, server, tlsconfig.AuthorizeID(id("/client"))))
	})
	calls.Go(func() {
		k.call(ctx, lis.Addr().String(), tlsconfig.MTLSClientConfig(client, client, tlsconfig.AuthorizeID(id("/server"))), client)
	})
	k.end = sync.OnceFunc(func() {
		cancel()
		calls.Wait()
		_ = lis.Close()
		wg.Wait()
	})
	t.Cleanup(k.end)
	return k
}

func (k *talk) stop() { k.end() }

func (k *talk) serve(wg *sync.WaitGroup, lis net.Listener, conf *tls.Config) {
	for {
		conn, err := lis.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(patience))
			secure := tls.Server(conn, conf)
			if err := secure.Handshake(); err != nil {
				k.fail("server", err)
				return
			}
			_, _ = io.Copy(secure, secure)
		})
	}
}

func (k *talk) call(ctx context.Context, addr string, conf *tls.Config, source *workloadapi.X509Source) {
	for ctx.Err() == nil {
		// What was begun is finished: half a handshake would count as failed.
		pair, err := exchange(context.WithoutCancel(ctx), addr, conf, source)
		if err != nil {
			k.fail("client", err)
		} else {
			k.mu.Lock()
			k.done++
			k.pairs[pair]++
			k.mu.Unlock()
		}
		time.Sleep(handshakePause)
	}
}

// exchange is one connection: a handshake, a word and its echo.
func exchange(ctx context.Context, addr string, conf *tls.Config, source *workloadapi.X509Source) (pair [2]string, err error) {
	svid, err := source.GetX509SVID()
	if err != nil {
		return pair, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return pair, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	const word = "credence"
	if _, err := io.WriteString(conn, word); err != nil {
		return pair, err
	}
	echo := make([]byte, len(word))
	if _, err := io.ReadFull(conn, echo); err != nil { // TLS 1.3 says here that the client was refused
		return pair, err
	}
	peer := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	return [2]string{hex.EncodeToString(svid.Certificates[0].AuthorityKeyId), hex.EncodeToString(peer.AuthorityKeyId)}, nil
}

func (k *talk) fail(end string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failed = append(k.failed, fmt.Sprintf("%v: %s: %v", time.Since(k.began).Round(time.Millisecond), end, err))
}

func (k *talk) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.done
}

func (k *talk) failures() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.failed)
}

// report says how many handshakes there were between which houses.
func (k *talk) report(house func(string) string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	pairs := map[string]int{}
	for p, n := range k.pairs {
		pairs[fmt.Sprintf("client of %-8s server of %-8s", house(p[0]), house(p[1]))] += n
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%d handshakes in %v, %d failed", k.done, time.Since(k.began).Round(time.Second), len(k.failed))
	for _, p := range slices.Sorted(maps.Keys(pairs)) {
		fmt.Fprintf(&out, "\n  %s %6d", p, pairs[p])
	}
	return out.String()
}
