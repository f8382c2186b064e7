package agent

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/credence-id/credence/pkg/agent/csi"
	"github.com/credence-id/credence/pkg/cli"
	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/preflight"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/credence-id/credence/pkg/unixsock"
	"golang.org/x/sync/errgroup"
)

// CSI is the section csi: pods get the directory of agent.socket_path by volumes
// of a CSI driver that the agent serves to kubelet. docs/csi.md has the rest.
type CSI struct {
	// DriverName is what pods name in spec.volumes[].csi.driver.
	DriverName string `hcl:"driver_name" default:"csi.spiffe.io" ours:"true"`
	// KubeletDir is kubelet's --root-dir. The agent's container has it at the same
	// path, with mountPropagation: Bidirectional.
	KubeletDir string `hcl:"kubelet_dir" default:"/var/lib/kubelet" ours:"true"`
	// SocketPath is where the agent answers CSI, for root alone.
	SocketPath string `hcl:"socket_path" unset:"plugins/DRIVER_NAME/csi.sock in kubelet_dir" ours:"true"`
	// KubeletSocketPath is where kubelet finds SocketPath, where that is
	// another path than in the agent's container.
	KubeletSocketPath string `hcl:"kubelet_socket_path" unset:"socket_path" ours:"true"`
	// RegistrationDir is where kubelet looks for plugins, such as
	// /var/lib/kubelet/plugins_registry; the agent registers its driver there. A
	// node-driver-registrar beside the agent needs it unset.
	RegistrationDir string `hcl:"registration_dir" unset:"the driver is registered by somebody else" ours:"true"`
	// NodeID names this node to Kubernetes.
	NodeID string `hcl:"node_id" unset:"the environment variable MY_NODE_NAME, or else the host name" ours:"true"`
	// OwnProcess leaves the driver to `credence-agent csi`: only who may mount has
	// to be privileged, and that process has no key and no server.
	OwnProcess bool `hcl:"own_process" ours:"true"`
}

// nodeNameEnv is what SPIRE's manifests have a pod's node in.
const nodeNameEnv = "MY_NODE_NAME"

// CSI's limits of names, in bytes.
const (
	maxDriverName = 63
	maxNodeID     = 256
)

var driverName = regexp.MustCompile(`^[A-Za-z0-9]([-.A-Za-z0-9]*[A-Za-z0-9])?$`)

// socket is where kubelet is answered; nothing when there is no section.
func (c *CSI) socket() string {
	if c == nil {
		return ""
	}
	return cmp.Or(c.SocketPath, filepath.Join(c.KubeletDir, "plugins", c.DriverName, "csi.sock"))
}

// registration is where kubelet's question about the driver is answered; its
// name is that of a node-driver-registrar, of which there is one for a driver.
func (c *CSI) registration() string {
	if c == nil || c.RegistrationDir == "" {
		return ""
	}
	return filepath.Join(c.RegistrationDir, c.DriverName+"-reg.sock")
}

func (c *CSI) nodeID() (string, error) {
	if id := cmp.Or(c.NodeID, os.Getenv(nodeNameEnv)); id != "" {
		return id, nil
	}
	return os.Hostname()
}

// ServeCSI serves what the section csi of a configuration with defaults set asks
// for, and nothing else of an agent, until ctx ends; then it returns nil. The
// section must say own_process. Of the options only Log and Version matter.
func ServeCSI(ctx context.Context, c *Config, o Options) error {
	if err := c.Validate(); err != nil {
		return err
	}
	if !c.Agent.CSI.apart() {
		return c.file.Errorf("agent.csi.own_process", "is not true, so it is `run` that serves the CSI driver: set it to have the driver in this process")
	}
	var problems []error
	c.Agent.CSI.preflight(func(key string, err error) {
		if err != nil {
			problems = append(problems, c.file.Errorf(key, "%w", err))
		}
	})
	if err := config.Problems(problems...); err != nil {
		return err
	}
	a := &Agent{config: c, log: o.Log, version: o.Version, registry: telemetry.NewRegistry(), csiAlone: true}
	if err := a.newCSI(); err != nil {
		return err
	}
	listeners, err := a.listen(ctx)
	if err != nil {
		return err
	}
	a.log.InfoContext(ctx, "serving the CSI driver to kubelet", telemetry.Name, c.Agent.CSI.DriverName, telemetry.Path, c.Agent.CSI.socket())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.csi.Run(ctx, listeners.csi, listeners.registration) })
	g.Go(func() error { return a.keepSockets(ctx) })
	return g.Wait()
}

// checkTimeout bounds what CheckCSI asks.
const checkTimeout = 3 * time.Second

// CheckCSI asks the driver that the section csi of a configuration with defaults
// set speaks of whether it answers (CSI's Identity.Probe), which is all there is
// to know: that pods cannot be given the directory yet is no reason to start it
// again. It fails after 3 s.
func CheckCSI(ctx context.Context, c *Config) error {
	socket := c.Agent.CSI.socket()
	if socket == "" {
		return c.file.Errorf("agent.csi", "is not there, so there is no CSI driver to check")
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	conn, err := cli.Dial(ctx, socket)
	if err == nil {
		defer conn.Close() //nolint:errcheck // nothing waits on it
		_, err = spec.NewIdentityClient(conn).Probe(ctx, &spec.ProbeRequest{})
	}
	if err != nil {
		return fmt.Errorf("the CSI driver at %s does not answer: %w", socket, err)
	}
	return nil
}

// apart says whether the driver is in a process of its own.
func (c *CSI) apart() bool { return c != nil && c.OwnProcess }

// newCSI makes the CSI service, where it is configured for this process.
func (a *Agent) newCSI() error {
	c := a.config.Agent.CSI
	if c == nil || c.OwnProcess != a.csiAlone {
		return nil
	}
	socket, err := filepath.Abs(a.config.Agent.SocketPath)
	if err != nil {
		return err
	}
	node, err := c.nodeID()
	if err != nil {
		return err
	}
	a.csi, err = csi.New(csi.Config{
		Driver: c.DriverName, NodeID: node, Version: a.version,
		Source: filepath.Dir(socket), KubeletDir: c.KubeletDir, Endpoint: cmp.Or(c.KubeletSocketPath, c.socket()),
		Log: a.log, Metrics: a.registry,
	})
	return err
}

// checkCSI checks the section csi, and that the directory that pods get has
// nothing in it that they must not see.
func (s *Section) checkCSI(report reporter) {
	c := s.CSI
	if c == nil {
		return
	}
	if runtime.GOOS != "linux" {
		report("agent.csi", "needs Linux; remove the section")
	}
	if len(c.DriverName) > maxDriverName || !driverName.MatchString(c.DriverName) {
		report("agent.csi.driver_name", "%q must have at most %d letters, digits, dots and dashes, and begin and end with a letter or digit", c.DriverName, maxDriverName)
	}
	if len(c.NodeID) > maxNodeID {
		report("agent.csi.node_id", "has %d bytes, at most %d are allowed", len(c.NodeID), maxNodeID)
	}
	for _, p := range []struct{ key, path string }{
		{"kubelet_dir", c.KubeletDir}, {"socket_path", c.SocketPath}, {"kubelet_socket_path", c.KubeletSocketPath}, {"registration_dir", c.RegistrationDir},
	} {
		if p.path != "" && (!filepath.IsAbs(p.path) || filepath.Clean(p.path) != p.path) {
			report("agent.csi."+p.key, "%q must be an absolute path, without empty, . and .. elements", p.path)
		}
	}
	if s.SocketPath == "" {
		return
	}
	public, err := filepath.Abs(s.SocketPath)
	if err != nil {
		return // the working directory is gone: nothing will work
	}
	public = filepath.Dir(public)
	// admin_socket_path is checked whether or not there is a section csi.
	for _, private := range []struct{ key, path string }{
		{"data_dir", s.DataDir}, {"log_file", s.LogFile}, {"join_token_file", s.JoinTokenFile},
		{"csi.kubelet_dir", c.KubeletDir}, {"csi.socket_path", c.socket()}, {"csi.registration_dir", c.registration()},
	} {
		if private.path != "" && below(private.path, public) {
			report("agent."+private.key, "%s is in or below %s, the directory of agent.socket_path, which pods are given by CSI; use another one for one of them", private.path, public)
		}
	}
}

// below says whether a path is a directory, or in or below it.
func below(path, dir string) bool {
	abs, err := filepath.Abs(path)
	return err == nil && (abs == dir || strings.HasPrefix(abs, strings.TrimSuffix(dir, "/")+"/"))
}

// preflight reports what is wrong with the files that the section names.
func (c *CSI) preflight(report func(key string, err error)) {
	for key, path := range map[string]string{"agent.csi.socket_path": c.socket(), "agent.csi.registration_dir": c.registration()} {
		if path != "" {
			report(key, unixsock.Check(path))
			report(key, preflight.Dir(filepath.Dir(path)))
		}
	}
	_, err := os.Stat(filepath.Join(c.KubeletDir, "pods"))
	report("agent.csi.kubelet_dir", err)
}
