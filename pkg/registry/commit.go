package registry

import (
	"github.com/credence-id/credence/pkg/store"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Commit is one step of the log, decoded. Its records are shared and must not
// be changed.
type Commit struct {
	// StoreID and Revision say where the log stands after this commit.
	StoreID  string
	Revision store.Revision
	// Reset says that the commit is the whole content at Revision and that
	// everything known before is forgotten: the first commit a follower gets,
	// and one after its history was compacted.
	Reset bool

	Entries []EntryChange
	Agents  []AgentChange
	Bundles []BundleChange
	// Relationships follow no bundle: each is told of on its own.
	Relationships []RelationshipChange
}

// EntryChange carries the entry as it is now, or nil when it was removed.
type EntryChange struct {
	ID  string
	Now *Packed
}

// AgentChange carries the agent as it is now, or nil when it was removed.
type AgentChange struct {
	ID  spiffeid.ID
	Now *Agent
}

// BundleChange carries the bundle as it is now, or nil when it was removed.
type BundleChange struct {
	TrustDomain spiffeid.TrustDomain
	Now         *Bundle
}

// RelationshipChange carries the federation relationship as it is now, or nil
// when it was removed.
type RelationshipChange struct {
	TrustDomain spiffeid.TrustDomain
	Now         *FederationRelationship
}
