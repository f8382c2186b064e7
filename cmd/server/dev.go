package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/template"
	"time"

	"github.com/credence-id/credence/pkg/agent"
	"github.com/credence-id/credence/pkg/cli"
	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/server"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
)

// dev is a server and an agent in one process, for trying things out: real
// sockets, a real store, real attestation; and everything in one folder that
// goes with the process.
type dev struct {
	out         io.Writer
	dir         string
	trustDomain string
	logLevel    string

	log *telemetry.Log
}

func devCommand(cli.Persona) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a server and an agent in one process, to try things out. Not for production",
		Args:  cobra.NoArgs,
	}
	d := &dev{}
	cmd.Flags().StringVar(&d.dir, "dataDir", "", "keep everything in this folder; default a temporary one, removed at the end")
	cmd.Flags().StringVar(&d.trustDomain, "trustDomain", "example.org", "the trust domain's name")
	cmd.Flags().StringVar(&d.logLevel, "logLevel", "warn", "debug, info, warn or error")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		d.out = cmd.OutOrStdout()
		return d.run(cmd.Context(), cmd.ErrOrStderr())
	}
	return cmd
}

func (d *dev) run(ctx context.Context, stderr io.Writer) (err error) {
	if d.dir == "" {
		if d.dir, err = os.MkdirTemp("", "credence-dev-"); err != nil {
			return fmt.Errorf("making a temporary folder: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(d.dir)) }()
		// Others on this machine may use the Workload API, and see nothing else.
		if err := os.Chmod(d.dir, 0o711); err != nil { //nolint:gosec // the folders in it are 0700
			return fmt.Errorf("making a temporary folder: %w", err)
		}
	} else if d.dir, err = filepath.Abs(d.dir); err != nil {
		return fmt.Errorf("-dataDir: %w", err)
	}
	if d.log, err = telemetry.NewLog(telemetry.LogConfig{Level: d.logLevel, Output: stderr}); err != nil {
		return err
	}

	// Others reach the Workload API through this folder; data in it is 0700.
	if err := os.MkdirAll(filepath.Join(d.dir, "agent"), 0o711); err != nil { //nolint:gosec // see above
		return fmt.Errorf("making a folder for the agent: %w", err)
	}
	// A terminal that is closed says SIGHUP; one that was told to go on does not.
	if !signal.Ignored(syscall.SIGHUP) {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, syscall.SIGHUP)
		defer stop()
	}
	group, ctx := errgroup.WithContext(ctx)
	bound := make(chan server.Bound, 1)
	srv, err := d.server(ctx, bound)
	if err != nil {
		return err
	}
	group.Go(func() error { return srv.Run(ctx) })
	group.Go(func() error {
		select {
		case b := <-bound:
			return d.runAgent(ctx, b)
		case <-ctx.Done():
			return nil
		}
	})
	return group.Wait()
}

func (d *dev) adminSocket() string { return filepath.Join(d.dir, "server", "api.sock") }
func (d *dev) agentSocket() string { return filepath.Join(d.dir, "agent", "public", "api.sock") }
func (d *dev) bundlePath() string  { return filepath.Join(d.dir, "bundle.pem") }

func (d *dev) server(ctx context.Context, bound chan<- server.Bound) (*server.Server, error) {
	lis, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	keys := filepath.Join(d.dir, "server", "data", "keys.json")
	plugins, err := devPlugins(fmt.Sprintf(`plugins {
		DataStore "bolt" { plugin_data {} }
		KeyManager "disk" { plugin_data { keys_path = %q } }
		NodeAttestor "join_token" { plugin_data {} }
	}`, keys))
	if err != nil {
		return nil, errors.Join(err, lis.Close())
	}
	srv, err := server.New(server.Config{
		Server: server.Settings{
			TrustDomain: d.trustDomain, DataDir: filepath.Join(d.dir, "server", "data"), SocketPath: d.adminSocket(),
		},
		Plugins:  plugins,
		Log:      d.log,
		Listener: lis,
		OnReady:  func(b server.Bound) { bound <- b },
	})
	if err != nil {
		return nil, errors.Join(err, lis.Close())
	}
	return srv, nil
}

func devPlugins(text string) (config.Plugins, error) {
	f, err := config.Parse("dev", []byte(text))
	if err != nil {
		return nil, err
	}
	var c struct {
		Plugins config.Plugins `hcl:"plugins"`
	}
	err = f.Decode(&c)
	return c.Plugins, err
}

// runAgent does what an operator does by hand: takes the bundle and a token to
// the node, starts the agent there, and registers a workload.
func (d *dev) runAgent(ctx context.Context, b server.Bound) error {
	agentID, token, err := d.register(ctx)
	if err != nil {
		return err
	}
	plugins, err := devPlugins(`plugins {
		KeyManager "disk" { plugin_data {} }
		NodeAttestor "join_token" { plugin_data {} }
		WorkloadAttestor "unix" { plugin_data { discover_workload_path = true } }
	}`)
	if err != nil {
		return err
	}
	addr := b.Address.(*net.TCPAddr) // of the listener made above
	ready := make(chan struct{})
	c := &agent.Config{
		Agent: agent.Section{
			DataDir: filepath.Join(d.dir, "agent", "data"), TrustDomain: d.trustDomain,
			ServerAddress: addr.IP.String(), ServerPort: addr.Port, SocketPath: d.agentSocket(),
			TrustBundlePath: d.bundlePath(), JoinToken: token,
		},
		Plugins: plugins,
	}
	c.SetDefaults()
	a, err := agent.New(c, agent.Options{Log: d.log.Logger(), Version: cli.Version(), Ready: sync.OnceFunc(func() { close(ready) })})
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		err := a.Run(ctx)
		if errors.Is(err, agent.ErrBanned) { // The server goes on: there is more to see.
			_, err = fmt.Fprintln(d.out, "\nThe agent is banned: it has forgotten every identity and ended. The server goes on until Ctrl-C.")
		}
		return err
	})
	group.Go(func() error {
		select {
		case <-ready:
			return d.show(ctx, agentID, addr)
		case <-ctx.Done():
			return nil
		}
	})
	return group.Wait()
}

// register makes a token and an entry for the calling user, and returns the ID
// the agent will have.
func (d *dev) register(ctx context.Context) (agentID, token string, err error) {
	conn, err := cli.Dial(ctx, d.adminSocket())
	if err != nil {
		return "", "", err
	}
	defer conn.Close() //nolint:errcheck // nothing was written to it that could be lost
	bundle, err := bundlev1.NewBundleClient(conn).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return "", "", fmt.Errorf("getting the bundle: %w", err)
	}
	var text strings.Builder
	if err := printCertificates(&text, authorities(bundle)); err != nil {
		return "", "", err
	}
	if err := os.WriteFile(d.bundlePath(), []byte(text.String()), 0o644); err != nil { //nolint:gosec // public
		return "", "", fmt.Errorf("writing the bundle: %w", err)
	}
	t, err := agentv1.NewAgentClient(conn).CreateJoinToken(ctx, &agentv1.CreateJoinTokenRequest{Ttl: 600})
	if err != nil {
		return "", "", fmt.Errorf("making a join token: %w", err)
	}
	parent := &types.SPIFFEID{TrustDomain: d.trustDomain, Path: "/spire/agent/join_token/" + t.GetValue()}
	resp, err := entryv1.NewEntryClient(conn).BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{
		SpiffeId:  &types.SPIFFEID{TrustDomain: d.trustDomain, Path: devPath()},
		ParentId:  parent,
		Selectors: []*types.Selector{{Type: "unix", Value: "uid:" + strconv.Itoa(os.Getuid())}},
	}}})
	if err != nil {
		return "", "", fmt.Errorf("making an entry: %w", err)
	}
	for _, r := range resp.GetResults() {
		if code(r.GetStatus()) != codes.OK {
			return "", "", fmt.Errorf("making an entry: %s", r.GetStatus().GetMessage())
		}
	}
	return idText(parent), t.GetValue(), nil
}

// devPath is the calling user's identity: by name where the name fits.
func devPath() string {
	path := "/user/" + strconv.Itoa(os.Getuid())
	u, err := user.Current()
	if err != nil || strings.Trim(u.Username, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
		return path
	}
	return "/user/" + u.Username
}

// show asks the Workload API as any workload does and prints what it said.
func (d *dev) show(ctx context.Context, agentID string, addr net.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	opt := workloadapi.WithAddr("unix://" + d.agentSocket())
	x, err := workloadapi.FetchX509Context(ctx, opt)
	if err != nil {
		return fmt.Errorf("asking the Workload API: %w", err)
	}
	token, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "try-it-out"}, opt)
	if err != nil {
		return fmt.Errorf("asking the Workload API: %w", err)
	}
	svid := x.DefaultSVID()
	var chain strings.Builder
	for _, c := range svid.Certificates {
		if err := printCertificates(&chain, [][]byte{c.Raw}); err != nil {
			return err
		}
	}
	return devText.Execute(d.out, map[string]any{
		"ID": svid.ID, "Chain": strings.TrimSpace(chain.String()), "NotAfter": svid.Certificates[0].NotAfter.Local().Format(time.TimeOnly),
		"Token": token.Marshal(), "Expiry": token.Expiry.Local().Format(time.TimeOnly), "Issuer": issuer(svid.Certificates),
		"AgentID": agentID, "Address": addr, "Admin": d.adminSocket(), "Socket": d.agentSocket(), "Dir": d.dir,
		"TLS": tls.VersionName(tls.VersionTLS13), "UID": os.Getuid(), "TrustDomain": d.trustDomain, "Bin": filepath.Dir(executable()),
	})
}

func issuer(chain []*x509.Certificate) string { return chain[len(chain)-1].Issuer.String() }

func executable() string {
	if path, err := os.Executable(); err == nil {
		return path
	}
	return os.Args[0]
}

var devText = template.Must(template.New("dev").Parse(`
Credence runs in development mode: one process, one node, the key on this disk. NOT FOR PRODUCTION.

Your processes (uid {{.UID}}) are now
  {{.ID}}

X509-SVID, good until {{.NotAfter}}, renewed long before, issued by {{.Issuer}}:
{{.Chain}}

JWT-SVID for the audience "try-it-out", good until {{.Expiry}}:
{{.Token}}

Workload API   unix://{{.Socket}}
admin socket   {{.Admin}}
server         {{.Address}} ({{.TLS}})
agent          {{.AgentID}}

Try next, in another terminal:
  export PATH={{.Bin}}:$PATH SPIFFE_ENDPOINT_SOCKET=unix://{{.Socket}}
  export SPIRE_AGENT_PUBLIC_SOCKET={{.Socket}} SPIRE_SERVER_PRIVATE_SOCKET={{.Admin}}
  credence-agent api watch                      # your SVIDs, as they change
  credence-server entry show                    # why you have them
  credence-server entry create -parentID {{.AgentID}} -spiffeID spiffe://{{.TrustDomain}}/second -selector unix:uid:{{.UID}}
  credence-server agent ban -spiffeID {{.AgentID}}   # and see them go

Everything is in {{.Dir}}. Ctrl-C ends it.
`))
