// Package cachetest has a server in miniature for tests of package cache and of
// what is served from it: real keys and certificates, entries with revisions,
// and the messages of the feed, without a network.
//
// It is not a model of the server's rules: it signs whatever it is asked for by
// entry ID. It is for tests only.
//
// Read [Server] first. The invariant: what it signs verifies by the bundle it
// gives, and what it sends over the feed has the digest it claims.
package cachetest
