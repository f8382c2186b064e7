// Package config reads configuration files in SPIRE's shape: HCL version 1, or
// JSON, with the sections server or agent, plugins, telemetry, health_checks.
//
// It decodes and nothing more. The rooms own their Config structs, defaults and
// Validate; config fills fields tagged `hcl:"key"` and is strict about it: an
// unknown key, a key set twice and a value of the wrong type are each an error
// that names file, line and key. Numbers and booleans may be written as text,
// as the Helm chart does; durations are text such as "1h".
//
// Read [Load] first, then [File.Decode] and [Plugins]. The invariant: all
// problems of a file are reported together, no input makes the parser panic,
// and no error repeats a text value, which may be a secret (what a field's own
// UnmarshalText says is up to that type).
package config
