package etcdtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// memberEnv tells the test binary to be a member: it holds a spec.
const memberEnv = "CREDENCE_ETCDTEST_MEMBER"

// startWait is how long a member may take to be ready, on a machine that is
// busy with other tests.
const startWait = time.Minute

// spec is what a member is started with.
type spec struct {
	Name, Dir string
	// Peer is the URL that the other members use.
	Peer string
	// Cluster is every member, as --initial-cluster has it.
	Cluster string
	// Tick is the heartbeat; ten of them are an election timeout.
	Tick time.Duration
	// Sync says that the disk is waited for.
	Sync bool
	// Quota is the size at which etcd refuses to grow, in bytes (0: 2 GiB).
	Quota int64
	// Files of TLS for clients.
	CA, Cert, Key string
}

// addresses are where a member listens.
type addresses struct{ Client, Peer string }

// Main runs a test binary's tests, or a member of a cluster, if that is what
// the binary was executed for. TestMain calls it and nothing else.
func Main(m *testing.M) {
	Member()
	code := m.Run()
	stopShared()
	os.Exit(code) //nolint:forbidigo // It is the end of a test binary's main.
}

// Member is Main's second half, for a TestMain that has more to do: if this
// process is to be a member, it is one and does not return.
func Member() {
	text := os.Getenv(memberEnv)
	if text == "" {
		return
	}
	if err := member(text); err != nil {
		fmt.Fprintln(os.Stderr, "etcdtest:", err)
		os.Exit(1) //nolint:forbidigo // It is the end of a test binary's main.
	}
	os.Exit(0) //nolint:forbidigo // It is the end of a test binary's main.
}

// member runs until its standard input ends, which is when its parent does.
func member(text string) error {
	var s spec
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	e, at, err := s.run()
	if err != nil {
		return err
	}
	defer e.Close()
	if err := json.NewEncoder(os.Stdout).Encode(at); err != nil {
		return err
	}
	var stdin sync.WaitGroup
	gone := make(chan struct{})
	stdin.Go(func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, os.Stdin) // Its end is what matters.
	})
	select {
	case <-gone:
		return nil
	case err := <-e.Err():
		return err
	case <-e.Server.StopNotify():
		return errors.New("etcd stopped by itself")
	}
}

// run starts etcd on ports of the system's choice and returns when it listens.
func (s spec) run() (*embed.Etcd, addresses, error) {
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = s.Name, s.Dir
	cfg.InitialCluster = s.Cluster
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.TickMs, cfg.ElectionMs = uint(s.Tick.Milliseconds()), uint(10*s.Tick.Milliseconds())
	cfg.UnsafeNoFsync = !s.Sync
	cfg.QuotaBackendBytes = s.Quota
	cfg.BcryptCost = 4 // The least: passwords of tests protect nothing.
	cfg.EnableGRPCGateway = false
	scheme := "http"
	if s.Cert != "" {
		scheme = "https"
		cfg.ClientTLSInfo.CertFile, cfg.ClientTLSInfo.KeyFile = s.Cert, s.Key
		cfg.ClientTLSInfo.TrustedCAFile, cfg.ClientTLSInfo.ClientCertAuth = s.CA, s.CA != ""
	}
	free := url.URL{Scheme: scheme, Host: "127.0.0.1:0"}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{free}, []url.URL{free}
	cfg.ListenPeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	peer, err := url.Parse(s.Peer)
	if err != nil {
		return nil, addresses{}, err
	}
	cfg.AdvertisePeerUrls = []url.URL{*peer}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, addresses{}, fmt.Errorf("starting etcd: %w", err)
	}
	return e, addresses{Client: e.Clients[0].Addr().String(), Peer: e.Peers[0].Addr().String()}, nil
}

// shared is the member in this process.
var shared struct {
	sync.Mutex
	etcd *embed.Etcd
	dir  string
	at   string
}

// Start returns the endpoint of a member inside this process, which all tests
// of the binary share: choose a prefix for each (t.Name has one). It does not
// wait for the disk. TestMain must call [Main], which ends it.
func Start(tb testing.TB) (endpoint string) {
	tb.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.etcd == nil {
		dir, err := os.MkdirTemp("", "etcdtest")
		if err != nil {
			tb.Fatal(err)
		}
		shared.etcd, shared.at = single(tb, spec{Dir: dir})
		shared.dir = dir
	}
	return shared.at
}

// Option changes a member that [New] starts.
type Option func(*spec)

// Quota makes the member refuse to grow beyond a number of bytes.
func Quota(bytes int64) Option { return func(s *spec) { s.Quota = bytes } }

// Sync makes the member wait for the disk.
func Sync() Option { return func(s *spec) { s.Sync = true } }

// TLS makes the member speak TLS to its clients, and ask for certificates of
// theirs that the authority has signed. The files are of certs, see [NewCerts].
func TLS(certs Certs) Option {
	return func(s *spec) { s.CA, s.Cert, s.Key = certs.CA, certs.ServerCert, certs.ServerKey }
}

// New returns the endpoint of a member inside this process for this test
// alone: for what would disturb others, such as compaction, alarms and users.
func New(tb testing.TB, options ...Option) (endpoint string) {
	tb.Helper()
	s := spec{Dir: tb.TempDir()}
	for _, o := range options {
		o(&s)
	}
	e, at := single(tb, s)
	tb.Cleanup(e.Close)
	return at
}

func single(tb testing.TB, s spec) (*embed.Etcd, string) {
	tb.Helper()
	s.Name, s.Peer, s.Tick = "single", "http://127.0.0.1:1", 10*time.Millisecond
	s.Cluster = s.Name + "=" + s.Peer // Nobody will ever call.
	e, at, err := s.run()
	if err != nil {
		tb.Fatal(err)
	}
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(startWait):
		e.Close()
		tb.Fatal("etcd is not ready after ", startWait)
	}
	scheme := "http://"
	if s.Cert != "" {
		scheme = "https://"
	}
	return e, scheme + at.Client
}

func stopShared() {
	shared.Lock()
	defer shared.Unlock()
	if shared.etcd != nil {
		shared.etcd.Close()
		_ = os.RemoveAll(shared.dir) // It is in the directory for temporary files.
	}
}
