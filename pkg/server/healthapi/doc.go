// Package healthapi serves grpc.health.v1: whether this server can do its work
// now.
//
// It decides nothing: the server passes a check, which is made when somebody
// asks, and tells when a watcher should look again. The HTTP probes (package
// telemetry) are given the same check.
//
// Read [Service] first. The invariant: no answer is kept; each says what the
// check said at that moment.
package healthapi
