package adminapi_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"math"
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/agent/adminapi"
	"github.com/credence-id/credence/pkg/telemetry"
	operatorv1 "github.com/credence-id/credence/proto/operator/v1"
	"github.com/google/go-cmp/cmp"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/debug/v1"
	delegatedv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/logger/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// buffer is a log that can be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func serve(t *testing.T, level string, info func() adminapi.Info) (*grpc.ClientConn, *telemetry.Log, *buffer) {
	t.Helper()
	out := new(buffer)
	log, err := telemetry.NewLog(telemetry.LogConfig{Level: level, Output: out})
	if err != nil {
		t.Fatal(err)
	}
	s, err := adminapi.New(adminapi.Config{Info: info, Budget: budget, Log: log, Logger: log.Logger()})
	if err != nil {
		t.Fatal(err)
	}
	lis := bufconn.Listen(1 << 16)
	ctx, stop := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error { return s.Serve(ctx, lis) })
	t.Cleanup(func() {
		stop()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	})
	conn, err := grpc.NewClient("passthrough:///admin", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn, log, out
}

func nothing() adminapi.Info { return adminapi.Info{} }

func certificate(t *testing.T, subject pkix.Name, notAfter time.Time, uris ...string) *x509.Certificate {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: subject, NotAfter: notAfter}
	for _, u := range uris {
		parsed, err := url.Parse(u)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, parsed)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestGetInfo(t *testing.T) {
	t.Parallel()
	expires := time.Unix(1_900_000_000, 0)
	agent := certificate(t, pkix.Name{Country: []string{"US"}, Organization: []string{"SPIRE"}}, expires, "spiffe://example.org/spire/agent/x")
	foreign := certificate(t, pkix.Name{CommonName: "a root"}, expires.Add(time.Hour))
	tests := []struct {
		name string
		info adminapi.Info
		want *debugv1.GetInfoResponse
	}{
		{"before it has attested", adminapi.Info{}, &debugv1.GetInfoResponse{}},
		{
			"all of it",
			adminapi.Info{
				Chain: []*x509.Certificate{agent, foreign}, Uptime: 90*time.Second + 900*time.Millisecond,
				LastSync: time.Unix(1_700_000_000, 999), X509SVIDs: 3, JWTSVIDs: 2,
			},
			&debugv1.GetInfoResponse{
				SvidChain: []*debugv1.GetInfoResponse_Cert{
					{Id: &types.SPIFFEID{TrustDomain: "example.org", Path: "/spire/agent/x"}, ExpiresAt: 1_900_000_000, Subject: "O=SPIRE,C=US"},
					{ExpiresAt: 1_900_003_600, Subject: "CN=a root"},
				},
				Uptime: 90, LastSyncSuccess: 1_700_000_000, CachedX509SvidsCount: 3, CachedJwtSvidsCount: 2,
			},
		},
		{
			"more than the API has room for",
			adminapi.Info{Uptime: math.MaxInt64, X509SVIDs: math.MaxInt32 + 1, JWTSVIDs: -1},
			&debugv1.GetInfoResponse{Uptime: math.MaxInt32, CachedX509SvidsCount: math.MaxInt32},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			conn, _, _ := serve(t, "", func() adminapi.Info { return test.info })
			got, err := debugv1.NewDebugClient(conn).GetInfo(t.Context(), &debugv1.GetInfoRequest{})
			if err != nil {
				t.Fatal(err)
			}
			// The deprecated count is that of X509-SVIDs.
			test.want.ProtoReflect().Set(test.want.ProtoReflect().Descriptor().Fields().ByName("svids_count"), protoreflect.ValueOfInt32(test.want.GetCachedX509SvidsCount()))
			if diff := cmp.Diff(test.want, got, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func budget() *operatorv1.OutageBudgetResponse {
	return &operatorv1.OutageBudgetResponse{Left: durationpb.New(time.Minute), InUse: 2, Cold: 1}
}

func TestOutageBudget(t *testing.T) {
	t.Parallel()
	conn, _, _ := serve(t, "", nothing)
	got, err := operatorv1.NewAgentOperatorClient(conn).OutageBudget(t.Context(), &operatorv1.OutageBudgetRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(budget(), got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestLogger(t *testing.T) {
	t.Parallel()
	conn, log, out := serve(t, "warn", nothing)
	api := loggerv1.NewLoggerClient(conn)
	want := func(what string, current types.LogLevel, got *types.Logger, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if diff := cmp.Diff(&types.Logger{CurrentLevel: current, LaunchLevel: types.LogLevel_WARN}, got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	got, err := api.GetLogger(t.Context(), &loggerv1.GetLoggerRequest{})
	want("at first", types.LogLevel_WARN, got, err)

	got, err = api.SetLogLevel(t.Context(), &loggerv1.SetLogLevelRequest{NewLevel: types.LogLevel_DEBUG})
	want("set", types.LogLevel_DEBUG, got, err)
	if log.Level() != slog.LevelDebug {
		t.Errorf("the log's level is %v", log.Level())
	}
	got, err = api.GetLogger(t.Context(), &loggerv1.GetLoggerRequest{})
	want("after set", types.LogLevel_DEBUG, got, err)

	got, err = api.ResetLogLevel(t.Context(), &loggerv1.ResetLogLevelRequest{})
	want("reset", types.LogLevel_WARN, got, err)
	if n := strings.Count(out.String(), "log level changed"); n != 2 {
		t.Errorf("%d changes are in the log, want 2, as each was made from or to a level that shows them:\n%s", n, out)
	}
}

func TestSetLogLevelRefuses(t *testing.T) {
	t.Parallel()
	conn, log, _ := serve(t, "error", nothing)
	tests := []struct {
		level types.LogLevel
		want  string
	}{
		{types.LogLevel_UNSPECIFIED, "newLevel value cannot be LogLevel_UNSPECIFIED"},
		{99, "unsupported log level"},
	}
	for _, test := range tests {
		_, err := loggerv1.NewLoggerClient(conn).SetLogLevel(t.Context(), &loggerv1.SetLogLevelRequest{NewLevel: test.level})
		if s := status.Convert(err); s.Code() != codes.InvalidArgument || s.Message() != test.want {
			t.Errorf("%v: %v, want InvalidArgument %q", test.level, err, test.want)
		}
	}
	if log.Level() != slog.LevelError {
		t.Errorf("the level was changed to %v", log.Level())
	}
}

// TestS13_NothingOnBehalfOfOthers: no method of the delegated API is served, so
// that no identity, privileged or not, is given to who asks for another's. A
// client that probes for it can tell.
func TestS13_NothingOnBehalfOfOthers(t *testing.T) {
	t.Parallel()
	conn, _, _ := serve(t, "", nothing)
	d := delegatedv1.DelegatedIdentity_ServiceDesc
	for _, m := range d.Methods {
		err := conn.Invoke(t.Context(), "/"+d.ServiceName+"/"+m.MethodName, &emptypb.Empty{}, &emptypb.Empty{})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v, want Unimplemented", m.MethodName, err)
		}
	}
	for _, m := range d.Streams {
		s, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/"+d.ServiceName+"/"+m.StreamName)
		if err == nil {
			err = s.RecvMsg(&emptypb.Empty{})
		}
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v, want Unimplemented", m.StreamName, err)
		}
	}
}

func TestNewWantsAllOfIt(t *testing.T) {
	t.Parallel()
	if _, err := adminapi.New(adminapi.Config{Info: nothing}); err == nil {
		t.Error("a service without a log was made")
	}
}
