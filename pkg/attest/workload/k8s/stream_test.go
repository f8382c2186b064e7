package k8s

import (
	"context"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/agent/attestor"
	"github.com/credence-id/credence/pkg/agent/cache"
	"github.com/credence-id/credence/pkg/agent/cachetest"
	"github.com/credence-id/credence/pkg/agent/peer"
	"github.com/credence-id/credence/pkg/agent/workloadapi"
	"github.com/credence-id/credence/pkg/attest"
	workloadattest "github.com/credence-id/credence/pkg/attest/workload"
	"github.com/credence-id/credence/pkg/attest/workload/k8stest"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// inPod takes every caller for a process in the first container of onePod.
type inPod struct{ *Attestor }

func (a inPod) Attest(ctx context.Context, _ workloadattest.Process) (attest.Selectors, <-chan struct{}, error) {
	return a.Attestor.Attest(ctx, process(uidOne, id("1")))
}

// agentOf is the agent's Workload API with entries of a server, whose only
// attestor is ours.
func agentOf(t *testing.T, api *k8stest.API, entries ...[]string) workload.SpiffeWorkloadAPIClient {
	t.Helper()
	server := cachetest.New(t, "example.org")
	c, err := cache.New(cache.Config{TrustDomain: server.TrustDomain, Minter: server})
	if err != nil {
		t.Fatal(err)
	}
	var all []*types.Entry
	for _, e := range entries {
		entry := server.Entry("entry-of"+e[0], e[0])
		entry.Selectors = nil
		for _, value := range e[1:] {
			entry.Selectors = append(entry.Selectors, &types.Selector{Type: Name, Value: value})
		}
		all = append(all, entry)
	}
	server.Put(all...)
	server.Sync(c)
	a := start(t, watching(api), Options{Needs: func(known attest.Selectors, missing func(attest.Selector) bool) bool {
		return c.Needs(Name, known, missing)
	}})
	runner, err := attestor.New(attestor.Config{Attestors: []workloadattest.Attestor{inPod{a}}})
	if err != nil {
		t.Fatal(err)
	}
	service, err := workloadapi.New(workloadapi.Config{TrustDomain: server.TrustDomain, Cache: c, Attestor: runner})
	if err != nil {
		t.Fatal(err)
	}
	lis := bufconn.Listen(64 << 10)
	creds := peer.NewCredentials(peer.Config{Prober: func(net.Conn) (*peer.Process, error) { return peer.Open(int32(os.Getpid())) }})
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	for name, run := range map[string]func(context.Context) error{
		"cache": c.Run, "peers": creds.Run,
		"Workload API": func(ctx context.Context) error { return service.Serve(ctx, lis, creds) },
	} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		wg.Wait()
	})
	return workload.NewSpiffeWorkloadAPIClient(conn)
}

func header(t *testing.T) context.Context {
	return metadata.AppendToOutgoingContext(patient(t), "workload.spiffe.io", "true")
}

func receive(t *testing.T, s workload.SpiffeWorkloadAPI_FetchX509SVIDClient) []string {
	t.Helper()
	resp, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, v := range resp.GetSvids() {
		ids = append(ids, v.GetSpiffeId())
	}
	return ids
}

// TestStreamFollowsItsPod: another label is another identity on an open stream,
// and the end of the pod is the end of the stream.
func TestStreamFollowsItsPod(t *testing.T) {
	t.Parallel()
	api := k8stest.NewAPI(t)
	api.SetPod(onePod())
	client := agentOf(t, api, []string{"/web", "pod-label:app:webserver", "ns:shop-front"}, []string{"/other", "pod-label:app:other"})
	s, err := client.FetchX509SVID(header(t), &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := receive(t, s); !slices.Equal(got, []string{"spiffe://example.org/web"}) {
		t.Fatal(got)
	}
	for _, label := range []string{"other", "webserver", "other"} {
		p := onePod()
		p.Labels["app"] = label
		flipped := time.Now()
		api.SetPod(p)
		want := "spiffe://example.org/" + map[string]string{"other": "other", "webserver": "web"}[label]
		if got := receive(t, s); !slices.Equal(got, []string{want}) {
			t.Errorf("label %s: %v", label, got)
		}
		if d := time.Since(flipped); d > time.Second {
			t.Errorf("it took %v", d)
		}
	}
	unary := func() codes.Code {
		_, err := client.FetchJWTSVID(header(t), &workload.JWTSVIDRequest{Audience: []string{"somebody"}})
		return status.Code(err)
	}
	if got := unary(); got != codes.OK {
		t.Errorf("a call is answered by %v", got)
	}
	api.DeletePod(uidOne)
	if _, err := s.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("the stream of a pod that is deleted ends with %v", err)
	}
	if got := unary(); got != codes.PermissionDenied {
		t.Errorf("a call of a pod that is deleted is answered by %v", got)
	}
}

// TestStreamBeforeTheStatus: an entry by the pod's own facts is served before the
// kubelet has reported the container, and one that needs the report as soon as it
// is there.
func TestStreamBeforeTheStatus(t *testing.T) {
	t.Parallel()
	early := onePod()
	early.Containers[0].ID, early.Containers[0].ImageID = "", ""
	for name, tc := range map[string]struct {
		entries [][]string
		early   bool // served before the status
		want    []string
	}{
		"by the pod": {entries: [][]string{{"/pod", "sa:web-account"}, {"/never", "sa:other", "container-name:main-container"}},
			early: true, want: []string{"spiffe://example.org/pod"}},
		"by the container": {entries: [][]string{{"/container", "sa:web-account", "container-name:main-container"}},
			want: []string{"spiffe://example.org/container"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			api := k8stest.NewAPI(t)
			api.SetPod(early)
			client := agentOf(t, api, tc.entries...)
			s, err := client.FetchX509SVID(header(t), &workload.X509SVIDRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if tc.early {
				if got := receive(t, s); !slices.Equal(got, tc.want) {
					t.Errorf("before the status: %v", got)
				}
				return
			}
			api.SetPod(onePod())
			if got := receive(t, s); !slices.Equal(got, tc.want) {
				t.Errorf("with the status: %v", got)
			}
		})
	}
}
