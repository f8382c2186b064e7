package cli

import (
	"os"
	"path/filepath"
	"strings"
)

// Persona is under which name the program runs: its own, or SPIRE's, which
// brings SPIRE's default socket paths and a few of its sentences.
type Persona struct {
	// SPIRE is true for a program called as spire-server or spire-agent.
	SPIRE bool

	uid    int
	getenv func(string) string // nil: an empty environment
}

func (p Persona) env(name string) string {
	if p.getenv == nil {
		return ""
	}
	return p.getenv(name)
}

// Self is the persona of this process: by the variable CREDENCE_PERSONA (spire
// or credence) if it is set, else by the name it was called with.
func Self() Persona {
	return personaOf(os.Args[0], os.Getuid(), os.Getenv)
}

func personaOf(argv0 string, uid int, getenv func(string) string) Persona {
	p := Persona{uid: uid, getenv: getenv}
	switch p.env("CREDENCE_PERSONA") {
	case "spire":
		p.SPIRE = true
	case "":
		name := strings.TrimPrefix(filepath.Base(argv0), "-") // A login shell's dash.
		p.SPIRE = name == "spire-server" || name == "spire-agent"
	}
	return p
}

// Program is the name of the program in usage texts; role is server or agent.
func (p Persona) Program(role string) string {
	if p.SPIRE {
		return "spire-" + role
	}
	return "credence-" + role
}

// ServerSocket is the default path of the server's admin socket.
func (p Persona) ServerSocket() string {
	if p.SPIRE {
		return "/tmp/spire-server/private/api.sock"
	}
	return filepath.Join(p.runtimeDir(), "server/private/api.sock")
}

// AgentSocket is the default path of the agent's Workload API socket.
func (p Persona) AgentSocket() string {
	if p.SPIRE {
		return "/tmp/spire-agent/public/api.sock"
	}
	return filepath.Join(p.runtimeDir(), "agent/public/api.sock")
}

// AgentAdminSocket is the default path of the agent's admin socket.
func (p Persona) AgentAdminSocket() string {
	if p.SPIRE {
		return "/tmp/spire-agent/private/admin.sock"
	}
	return filepath.Join(p.runtimeDir(), "agent/private/admin.sock")
}

const systemRuntimeDir = "/run/credence"

// runtimeDir is the system's, or the user's own where there is one.
func (p Persona) runtimeDir() string {
	own := p.env("XDG_RUNTIME_DIR")
	if p.uid == 0 || !filepath.IsAbs(own) {
		return systemRuntimeDir
	}
	return filepath.Join(own, "credence")
}
