package policy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/registry"
)

// Role is a set of what a caller can be. The zero Role is nobody in particular:
// a caller without a client certificate, or with one that earns it nothing.
type Role uint8

// Roles. One caller can have several, such as a workload that is both admin and
// downstream.
const (
	// Local came through the server's own Unix socket.
	Local Role = 1 << iota
	// Admin has an SVID of an admin entry, or one of the configured admin_ids.
	Admin
	// Agent has the active SVID of an attested agent that is not banned.
	Agent
	// Downstream has an SVID of a downstream entry.
	Downstream
)

var roleNames = []struct {
	role Role
	name string
}{{Local, "local"}, {Admin, "admin"}, {Agent, "agent"}, {Downstream, "downstream"}}

// String lists the roles, such as "local or admin".
func (r Role) String() string {
	var names []string
	for _, n := range roleNames {
		if r&n.role != 0 {
			names = append(names, n.name)
		}
	}
	if len(names) == 0 {
		return "anonymous"
	}
	return strings.Join(names, " or ")
}

// Caller is who makes one call, as proven for that call.
type Caller struct {
	Roles Role
	// Peer is where the call came from, for the audit log: "uid:0" on the
	// local socket, else a network address.
	Peer string
	// ID is the SPIFFE ID of the verified client certificate; zero if there is
	// none.
	ID spiffeid.ID
	// Serial is that certificate's serial number, decimal.
	Serial string
	// Agent is set with the role Agent.
	Agent *registry.Agent
	// Entries are those whose SPIFFE ID is ID and that give it the roles Admin
	// or Downstream.
	Entries []*registry.Entry
}

// Is says whether the caller has at least one of the roles.
func (c Caller) Is(any Role) bool { return c.Roles&any != 0 }

// String is the SPIFFE ID, or for a caller without one, where the call came
// from.
func (c Caller) String() string {
	if c.ID.IsZero() {
		return c.Peer
	}
	return c.ID.String()
}

// ErrDenied is what every [DeniedError] is.
var ErrDenied = errors.New("permission denied")

// DeniedError says what was missing.
type DeniedError struct {
	// Method in full, such as "/spire.api.server.entry.v1.Entry/GetEntry".
	Method string
	// Need is the roles of which one is required; zero for a method that is
	// not known.
	Need Role
	// Have is the caller's roles.
	Have Role
}

// Error names the rule and, for a known method, who may call it.
func (e *DeniedError) Error() string {
	if e.Need == 0 {
		return fmt.Sprintf("%s is not a method that anybody may call", e.Method)
	}
	return fmt.Sprintf("%s may be called by %s, caller is %s", e.Method, e.Need, strings.ReplaceAll(e.Have.String(), " or ", " and "))
}

// Is makes every DeniedError an ErrDenied.
func (e *DeniedError) Is(target error) bool { return target == ErrDenied }

// Policy is the table with what is configured about it.
type Policy struct {
	// HealthOnTCP lets anybody call grpc.health.v1 (default: local only).
	HealthOnTCP bool
}

// Decide returns nil if the caller may call the method, given by its full name,
// else a [DeniedError].
func (p Policy) Decide(method string, c Caller) error {
	r, ok := table[method]
	if ok && (r.anyone || r.health && p.HealthOnTCP || c.Is(r.roles)) {
		return nil
	}
	return &DeniedError{Method: method, Need: r.roles, Have: c.Roles}
}

// NeedsCaller says whether the answer depends on who calls: false for methods
// that anyone may call, and for those nobody may.
func (p Policy) NeedsCaller(method string) bool {
	r, ok := table[method]
	return ok && !r.anyone && (!r.health || !p.HealthOnTCP)
}
