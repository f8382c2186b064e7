package unix

import (
	"context"
	"fmt"
	"io/fs"
	"strconv"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/attest/workload"
)

// Name is the selector type and the name in the configuration.
const Name = "unix"

// Config is the plugin_data of WorkloadAttestor "unix".
//
//credence:plugin_data agent WorkloadAttestor unix
type Config struct {
	// DiscoverWorkloadPath adds the selectors path and sha256. The agent must
	// be allowed to read /proc/<pid>/exe of the workloads: run it as root, or
	// as their user; a workload whose path cannot be read is then not attested
	// at all.
	DiscoverWorkloadPath bool `hcl:"discover_workload_path"`
	// WorkloadSizeLimit is the largest executable, in bytes, whose sha256 is
	// calculated; a process that runs a larger one is not attested. 0 means no
	// limit; a negative value: no sha256 for anyone.
	WorkloadSizeLimit int64 `hcl:"workload_size_limit" unset:"no limit"`
}

// Validate accepts every Config: all values mean something.
func (Config) Validate() error { return nil }

// Attestor says which user, groups and executable a process has.
type Attestor struct {
	cfg     Config
	users   names
	groups  names
	digests digests
}

var _ workload.Attestor = (*Attestor)(nil)

// New returns an Attestor. It opens nothing.
func New(cfg Config) *Attestor {
	return &Attestor{
		cfg:     cfg,
		users:   names{path: "/etc/passwd", fields: 7},
		groups:  names{path: "/etc/group", fields: 4},
		digests: digests{limit: cfg.WorkloadSizeLimit},
	}
}

// Name is "unix".
func (*Attestor) Name() string { return Name }

// Attest returns uid and gid, each supplementary_gid, the names of those that
// have one (user, group, supplementary_group) and, if configured, path and
// sha256. The answer is never invalidated. It fails when any part but a name
// cannot be had: fewer selectors than are true would look like another process.
func (a *Attestor) Attest(ctx context.Context, p workload.Process) (attest.Selectors, <-chan struct{}, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	var found selectors
	if err := a.identity(&found, p); err != nil {
		return nil, nil, err
	}
	if a.cfg.DiscoverWorkloadPath {
		if err := a.executable(ctx, &found, p); err != nil {
			return nil, nil, err
		}
	}
	set := attest.NewSelectors(found...)
	if err := set.Validate(); err != nil {
		return nil, nil, fmt.Errorf("process has facts that no selector can hold: %w", err)
	}
	return set, nil, nil
}

// identity adds who the process is.
func (a *Attestor) identity(found *selectors, p workload.Process) error {
	status, err := fs.ReadFile(p.Proc(), "status")
	if err != nil {
		return fmt.Errorf("reading the supplementary groups: %w", err)
	}
	gids, err := parseGroups(status)
	if err != nil {
		return fmt.Errorf("reading the supplementary groups: %w", err)
	}
	users, err := a.users.open()
	if err != nil {
		return err
	}
	groups, err := a.groups.open()
	if err != nil {
		return err
	}
	if err := found.named("uid:", "user:", p.UID(), users); err != nil {
		return err
	}
	if err := found.named("gid:", "group:", p.GID(), groups); err != nil {
		return err
	}
	for _, gid := range gids {
		if err := found.named("supplementary_gid:", "supplementary_group:", gid, groups); err != nil {
			return err
		}
	}
	return nil
}

// executable adds what the process runs.
func (a *Attestor) executable(ctx context.Context, found *selectors, p workload.Process) error {
	path, err := p.ReadLink("exe")
	if err != nil {
		return fmt.Errorf("reading the path of the executable: %w", err)
	}
	found.add("path:", path)
	if a.cfg.WorkloadSizeLimit < 0 {
		return nil
	}
	sum, err := a.digests.of(ctx, p)
	if err != nil {
		return fmt.Errorf("hashing the executable: %w", err)
	}
	found.add("sha256:", sum)
	return nil
}

type selectors []attest.Selector

func (s *selectors) add(kind, value string) {
	*s = append(*s, attest.Selector{Type: Name, Value: kind + value})
}

// named adds an id, and its name if it has one.
func (s *selectors) named(idKind, nameKind string, id uint32, in view) error {
	s.add(idKind, strconv.FormatUint(uint64(id), 10))
	name, err := in.name(id)
	if err != nil {
		return err
	}
	if name != "" {
		s.add(nameKind, name)
	}
	return nil
}
