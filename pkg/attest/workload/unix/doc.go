// Package unix is the workload attestor `unix`: which user, groups and, if
// configured, which executable a process has. Selectors and configuration are
// those of SPIRE's attestor of the same name; docs/attestors/unix.md says how
// far each selector can be trusted.
//
// User and group names come from /etc/passwd and /etc/group as the agent sees
// them, in every build of the agent: not from NSS, LDAP or the workload's own
// container.
//
// Read [Attestor] first. The invariant: the executable's digest is of the file
// the process runs, reached through the process and never by its path, and a
// remembered digest is used only for bytes that cannot have changed since.
package unix
