// Package loggerapi serves SPIRE's logger.v1 of the server: the threshold of its
// log is shown and changed while it runs.
//
// It is not the log, which is package telemetry's, nor the agent's logger.v1.
//
// Read [Service] first. The invariant: every change is logged under the more
// talkative of the two levels, and that of the configuration can always be had
// back.
package loggerapi
