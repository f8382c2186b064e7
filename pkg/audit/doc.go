// Package audit records security decisions: who asked for what, and what came
// of it. Issuing, attesting, banning, changing an entry or an authority is
// written twice: the intent before anything happens, the outcome after, both
// with the same audit_id. An intent without an outcome is a crash in between.
//
// It is not the log of requests and not a store: records are structured log
// lines of one *slog.Logger, at INFO, marked stream=audit.
//
// Read [Log.Begin] first; [Refusals] are for what anybody can bring about as often
// as they like. The invariant: a record is bounded (texts are cut, attributes
// counted) and holds no secret; what is recorded are identifiers, serials, times
// and reasons, never tokens, keys or request bodies.
package audit
