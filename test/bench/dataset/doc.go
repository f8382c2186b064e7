// Package dataset makes registrations of a believable shape, as many as asked
// for: which entries hang below which alias, how many selectors they have, how
// many federate. It also brings them into a server, by its API.
//
// It measures nothing and starts nothing; package main of the harness does.
//
// Read [Spec] first. The invariant: entry i of a Spec is the same in every run,
// whatever was made before it, so that two servers can be given the same data
// and one server be given the rest later.
package dataset
