package server

import (
	"errors"
	"math"
	"net"
	"sync"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"

	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	operatorv1 "github.com/credence-id/credence/proto/operator/v1"
)

// Limits of a connection.
const (
	// maxRecv bounds one message from a client, in bytes.
	maxRecv = 4 << 20
	// maxHeaders bounds the headers of one call, in bytes.
	maxHeaders = 16 << 10
	// maxStreams bounds the calls that are open on one connection.
	maxStreams = 250
	// handshakeTimeout bounds the time to a served connection.
	handshakeTimeout = 10 * time.Second
	// keepaliveEvery is when a silent client is asked whether it is there,
	// and keepaliveAnswer how long it has to answer. It is longer than the 10 s
	// after which our agents ask: while one does, it is not asked as well, which
	// would wake this process twice for each of them.
	keepaliveEvery  = 30 * time.Second
	keepaliveAnswer = 5 * time.Second
	// keepaliveLeast is how often clients may ask.
	keepaliveLeast = 5 * time.Second
	// readBuffer is per connection, in bytes: agents have one each, idle most
	// of the time. Write buffers are shared by gRPC itself.
	readBuffer = 8 << 10
)

// newGRPC makes a gRPC server with every service, behind the chain.
func (k *control) newGRPC(creds credentials.TransportCredentials) *grpc.Server {
	srv := grpc.NewServer(
		grpc.Creds(creds),
		grpc.UnaryInterceptor(k.chain.unary),
		grpc.StreamInterceptor(k.chain.stream),
		grpc.InTapHandle(tapIn),
		grpc.MaxRecvMsgSize(maxRecv),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveEvery, Timeout: keepaliveAnswer}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveLeast, PermitWithoutStream: true}),
		grpc.ReadBufferSize(readBuffer),
	)
	agentv1.RegisterAgentServer(srv, k.attest)
	bundlev1.RegisterBundleServer(srv, k.bundle)
	entryv1.RegisterEntryServer(srv, k.entry)
	svidv1.RegisterSVIDServer(srv, k.svids)
	trustdomainv1.RegisterTrustDomainServer(srv, k.trust)
	localauthorityv1.RegisterLocalAuthorityServer(srv, k.own)
	debugv1.RegisterDebugServer(srv, k.debug)
	loggerv1.RegisterLoggerServer(srv, k.logger)
	feedv1.RegisterFeedServer(srv, k.hub)
	operatorv1.RegisterOperatorServer(srv, k.ops)
	healthv1.RegisterHealthServer(srv, k.health)
	return srv
}

// servers makes the two gRPC servers, for the TLS listener and the admin's
// socket.
func (k *control) servers() (overTLS, admin *grpc.Server) {
	cfg := k.svid.tlsConfig(k.settings, k.roots, k.fresh.waitForStranger)
	overTLS = k.newGRPC(tlsCredentials{TransportCredentials: credentials.NewTLS(cfg), door: k.door})
	return overTLS, k.newGRPC(localCredentials{})
}

// serveOn serves until the server is stopped, which may be before it began.
func serveOn(srv *grpc.Server, l net.Listener) error {
	if err := srv.Serve(l); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// stopServers lets calls in flight finish, for at most grace. Whoever has come
// through the door and is silent is waited for no longer.
func stopServers(d *door, grace time.Duration, servers ...*grpc.Server) {
	d.stop()
	hurry := time.AfterFunc(grace, func() {
		d.shut()
		for _, s := range servers {
			s.Stop()
		}
	})
	defer hurry.Stop()
	var stopping sync.WaitGroup
	for _, s := range servers {
		stopping.Go(s.GracefulStop)
	}
	stopping.Wait()
}
