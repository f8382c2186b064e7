package integration

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// self is the selector that the test's own process has: it is the workload of
// most stories.
func self() string { return "unix:uid:" + strconv.Itoa(os.Getuid()) }

// x509Update is one message of an X509-SVID stream, or its end.
type x509Update struct {
	at    time.Time
	svids []x509Identity
	err   error
}

type x509Identity struct {
	id, hint string
	leaf     *x509.Certificate
	roots    []*x509.Certificate
}

func (u x509Update) ids() []string {
	var out []string
	for _, s := range u.svids {
		out = append(out, s.id)
	}
	slices.Sort(out)
	return out
}

func (u x509Update) String() string {
	if u.err != nil {
		return u.err.Error()
	}
	return fmt.Sprint(u.ids())
}

// find is the identity with the path, or nil.
func (u x509Update) find(id fmt.Stringer) *x509Identity {
	for i, s := range u.svids {
		if s.id == id.String() {
			return &u.svids[i]
		}
	}
	return nil
}

// workloadContext has the header that the Workload API demands.
func workloadContext(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

// x509Stream is an open FetchX509SVID stream.
type x509Stream struct {
	t       *testing.T
	updates chan x509Update
	last    x509Update
}

// streamX509 opens a stream; it ends with the test.
func streamX509(t *testing.T, conn *grpc.ClientConn) *x509Stream {
	t.Helper()
	ctx, cancel := context.WithCancel(workloadContext(t.Context()))
	s := &x509Stream{t: t, updates: make(chan x509Update, 256)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.read(ctx, conn)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

func (s *x509Stream) read(ctx context.Context, conn *grpc.ClientConn) {
	defer close(s.updates)
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	for err == nil {
		var resp *workload.X509SVIDResponse
		if resp, err = stream.Recv(); err == nil {
			var u x509Update
			if u, err = readUpdate(resp); err == nil {
				s.updates <- u
			}
		}
	}
	s.updates <- x509Update{at: time.Now(), err: err}
}

func readUpdate(resp *workload.X509SVIDResponse) (x509Update, error) {
	u := x509Update{at: time.Now()}
	for _, s := range resp.GetSvids() {
		chain, err := x509.ParseCertificates(s.GetX509Svid())
		if err != nil {
			return u, err
		}
		roots, err := x509.ParseCertificates(s.GetBundle())
		if err != nil {
			return u, err
		}
		if _, err := x509.ParsePKCS8PrivateKey(s.GetX509SvidKey()); err != nil {
			return u, errors.New("the key of an SVID cannot be read")
		}
		u.svids = append(u.svids, x509Identity{id: s.GetSpiffeId(), hint: s.GetHint(), leaf: chain[0], roots: roots})
	}
	return u, nil
}

// until reads updates until one is right, and returns it.
func (s *x509Stream) until(what string, right func(x509Update) bool) x509Update {
	s.t.Helper()
	return s.untilWithin(patience, what, right)
}

func (s *x509Stream) untilWithin(within time.Duration, what string, right func(x509Update) bool) x509Update {
	s.t.Helper()
	deadline := time.After(within)
	for {
		select {
		case u, open := <-s.updates:
			if !open {
				s.t.Fatalf("%s: the stream has ended: %v", what, s.last)
			}
			s.last = u
			if right(u) {
				return u
			}
		case <-deadline:
			s.t.Fatalf("%s: not within %v; last seen: %v", what, within, s.last)
		}
	}
}

// has waits until the stream's SVIDs are those of exactly the IDs.
func (s *x509Stream) has(ids ...fmt.Stringer) x509Update {
	s.t.Helper()
	var want []string
	for _, id := range ids {
		want = append(want, id.String())
	}
	slices.Sort(want)
	return s.until(fmt.Sprintf("a stream of %v", want), func(u x509Update) bool {
		return u.err == nil && slices.Equal(u.ids(), want)
	})
}

// ends waits until the stream is told that there is no identity any more.
func (s *x509Stream) ends() x509Update {
	s.t.Helper()
	u := s.until("the end of a stream", func(u x509Update) bool { return u.err != nil })
	if status.Code(u.err) != codes.PermissionDenied {
		s.t.Fatalf("the stream ended with %v, want PermissionDenied", u.err)
	}
	return u
}

// fetchX509 asks once, and returns the first answer.
func fetchX509(t *testing.T, conn *grpc.ClientConn) (x509Update, error) {
	t.Helper()
	return fetchX509Within(t, conn, patience)
}

func fetchX509Within(t *testing.T, conn *grpc.ClientConn, within time.Duration) (x509Update, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(workloadContext(t.Context()), within)
	defer cancel()
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		return x509Update{}, err
	}
	resp, err := stream.Recv()
	if err != nil {
		return x509Update{}, err
	}
	return readUpdate(resp)
}

// sees asks again, as clients do, until the answer is exactly the IDs, and
// returns that: what was just registered may be on its way, and the agent away
// from its server.
func sees(t *testing.T, a *agent, ids ...fmt.Stringer) x509Update {
	t.Helper()
	want := make([]string, 0, len(ids))
	for _, id := range ids {
		want = append(want, id.String())
	}
	slices.Sort(want)
	var got x509Update
	eventually(t, fmt.Sprintf("%s serves %v", a.name, want), func() (err error) {
		got, err = fetchX509(t, a.conn)
		if err == nil && !slices.Equal(got.ids(), want) {
			err = fmt.Errorf("it serves %v", got.ids())
		}
		return err
	})
	return got
}

// streamOf is an open stream that has exactly the IDs.
func streamOf(t *testing.T, a *agent, ids ...fmt.Stringer) *x509Stream {
	t.Helper()
	sees(t, a, ids...)
	s := streamX509(t, a.conn)
	s.has(ids...)
	return s
}

// refused demands that a fetch is answered with "no identity issued".
func refused(t *testing.T, conn *grpc.ClientConn) {
	t.Helper()
	u, err := fetchX509(t, conn)
	if s := status.Convert(err); s.Code() != codes.PermissionDenied || s.Message() != "no identity issued" {
		t.Fatalf("a workload without identity got %v and the error %v, want PermissionDenied: no identity issued", u, err)
	}
}

// verify demands that the SVID is good now, for its own bundle.
func (i *x509Identity) verify(t *testing.T) {
	t.Helper()
	roots := x509.NewCertPool()
	for _, c := range i.roots {
		roots.AddCert(c)
	}
	if _, err := i.leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Fatalf("the SVID of %s does not verify: %v", i.id, err)
	}
}
