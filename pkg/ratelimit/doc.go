// Package ratelimit bounds how often each of many callers may do a thing: a
// token bucket a key, in a table that cannot grow beyond a number of keys.
//
// It decides neither what is limited nor who a caller is: that is said where
// the calls are (pkg/server for the server's API, pkg/agent/workloadapi for the
// Workload API).
//
// Read [Limiter] first. The invariant: memory is bounded whatever keys come,
// there is no timer and no goroutine, and one key's waiting holds up no other.
// A key that is forgotten, because too many others came, begins with a full
// bucket again; it was idle, or whoever crowds it out has that many keys.
package ratelimit
