// Package manifest is what operators declare in files: registration entries, in
// the JSON that SPIRE's `entry create -data` reads, or the same as YAML.
//
// [DecodeData] reads a file of -data. [Load] reads the files of `entry apply`,
// strictly: an unknown field is an error with file and line. [Diff] compares
// what they declare with what a server has, and says what to do about it.
//
// It is pure: it reads files, and never talks to a server. The invariant: a
// [Plan] deletes nothing but entries whose ID says that the same set made
// them, and what a plan leads to has the empty plan.
package manifest
