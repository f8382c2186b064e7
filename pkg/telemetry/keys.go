package telemetry

// Keys of log attributes. Values never hold secrets: no token, no private key,
// no selector value taken from a process's environment or arguments.
const (
	Err    = "err"
	Reason = "reason"

	// Who and what.
	SPIFFEID        = "spiffe_id"
	ParentID        = "parent_id"
	TrustDomain     = "trust_domain"
	EntryID         = "entry_id"
	AgentID         = "agent_id"
	ServerID        = "server_id"
	Caller          = "caller"
	CallerKind      = "caller_kind"
	PeerPID         = "peer_pid"
	PeerUID         = "peer_uid"
	PeerAddr        = "peer_addr"
	Hint            = "hint"
	SelectorType    = "selector_type"
	AttestationType = "attestation_type"
	Attestor        = "attestor"

	// Certificates, tokens, keys.
	AuthorityID  = "authority_id"
	UpstreamID   = "upstream_authority_id"
	Slot         = "slot"
	KeyID        = "key_id"
	KeyType      = "key_type"
	Serial       = "serial"
	Audience     = "audience"
	NotBefore    = "not_before"
	NotAfter     = "not_after"
	ExpiresAt    = "expires_at"
	TTL          = "ttl"
	SVIDKind     = "svid_kind"
	AuthKind     = "authority_kind"
	OutageBudget = "outage_budget"

	// Where and when.
	Revision = "revision"
	StoreID  = "store_id"
	Cursor   = "cursor"
	Method   = "method"
	Code     = "code"
	Address  = "address"
	Old      = "old_address"
	Path     = "path"
	Engine   = "engine"
	Plugin   = "plugin"
	Phase    = "phase"
	Count    = "count"
	Limit    = "limit"
	Bytes    = "bytes"
	Elapsed  = "elapsed"
	Retry    = "retry_in"
	Version  = "version"
	Level    = "level_name"
	Key      = "config_key"
	Name     = "name"
)
