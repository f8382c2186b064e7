// Package config reads configuration files in SPIRE's shape: HCL version 1, or
// JSON, with the sections server or agent, plugins, telemetry, health_checks.
//
// The rooms own their Config structs and Validate; config fills fields tagged
// `hcl:"key"` and is strict about it: an unknown key, a key set twice and a value
// of the wrong type are each a [Problem] with file, line and key, and so is what
// a Validate reports by [File.Errorf]. The tag default is used by [SetDefaults];
// refused and accepted, which give the reason, by [Unsupported]; ours and unset
// are for docs/configuration.md. Durations are text such as "1h".
//
// Read [Load] first, then [File.Decode] and [Plugins]. The invariant: all
// problems of a file are reported together in its order ([Problems]), no input
// makes the parser panic, and no error of this package repeats a text value,
// which may be a secret (a field's own UnmarshalText is up to its type).
package config
