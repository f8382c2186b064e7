package server

import "fmt"

// refused reports the keys of SPIRE that are set and that this version cannot
// honour: ignoring them would run another server than the one asked for.
func (s Settings) refused() []error {
	x := s.Experimental
	var problems []error
	for _, k := range []struct {
		set       bool
		key, hint string
	}{
		{s.Federation.IsSet(), "federation", "this version neither serves nor fetches bundles of other trust domains; remove the section"},
		{s.DisableJWTSVIDs, "disable_jwt_svids", "this version always has a JWT authority; remove the key"},
		{len(s.ProxyProtocolCIDRs) > 0, "proxy_protocol_trusted_cidrs", "this version does not speak the PROXY protocol; let the load balancer pass TCP through and remove the key"},
		{s.ProfilingEnabled, "profiling_enabled", "this version has no profiling listener; use `perf`, or remove the key"},
		{x.AgentSPIFFEIDAsSelector, "experimental.agent_spiffe_id_as_selector", "node aliases match attested selectors only; use entries with the agent as parent and remove the key"},
		{x.AuthOPAPolicyEngine.IsSet(), "experimental.auth_opa_policy_engine", "who may call what is fixed; grant rights by entries (admin, downstream) or admin_ids and remove the section"},
		{x.WITKeyType != "", "experimental.wit_key_type", "this version issues no WIT-SVIDs; remove the key"},
		{x.WITIssuer != "", "experimental.wit_issuer", "this version issues no WIT-SVIDs; remove the key"},
		{len(x.FeatureFlags) > 0, "experimental.feature_flags", "there are no feature flags; remove the key"},
		{x.NamedPipeName != "", "experimental.named_pipe_name", "named pipes exist on Windows only; use socket_path"},
	} {
		if k.set {
			problems = append(problems, fmt.Errorf("server.%s: not supported: %s", k.key, k.hint))
		}
	}
	return problems
}

// notice is a key that is set, accepted, and has no effect.
type notice struct {
	key, reason string
}

// notices are the keys whose purpose is met, or has no object, here.
func (s Settings) notices() []notice {
	x := s.Experimental
	on := func(b *bool) bool { return b != nil && *b }
	const pushed = "there is no cache to reload: changes are pushed"
	var out []notice
	for _, k := range []struct {
		set         bool
		key, reason string
	}{
		{x.CacheReloadInterval != "", "experimental.cache_reload_interval", pushed},
		{x.FullCacheReloadInterval != "", "experimental.full_cache_reload_interval", pushed},
		{x.EventsBasedCache, "experimental.events_based_cache", pushed},
		{x.PruneEventsOlderThan != "", "experimental.prune_events_older_than", "there is no table of events"},
		{x.EventTimeout != "", "experimental.event_timeout", "there is no table of events"},
		{x.SQLTransactionTimeout != "", "experimental.sql_transaction_timeout", "there is no SQL"},
		{s.MaxAttestedNodeStaleness != nil, "max_attested_node_info_staleness", pushed},
		{s.PruneBatchSize != 0, "prune_attested_nodes_batch_size", "pruning is done in small transactions"},
		{on(s.RateLimit.Attestation), "ratelimit.attestation", "this version does not limit the rate of attestations"},
		{on(s.RateLimit.Signing), "ratelimit.signing", "this version does not limit the rate of signing"},
	} {
		if k.set {
			out = append(out, notice{key: "server." + k.key, reason: k.reason})
		}
	}
	return out
}
