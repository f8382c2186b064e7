// Package telemetry is how a Credence process speaks to its operator: the
// logger (level, format, file), the names of log attributes, the Prometheus
// registry with its listener, and the health listener.
//
// It holds no metrics of its own: each package declares its metrics in its own
// metrics.go and registers them on the prometheus.Registerer of its Config. It
// decides nothing about health either: the process passes [Checker] functions.
//
// Read [Log] first, then keys.go: every attribute in a log line uses a key
// from there, so that one search finds one thing in all rooms. The invariant:
// nothing here starts by itself. New… builds, Run(ctx) blocks until ctx ends.
package telemetry
