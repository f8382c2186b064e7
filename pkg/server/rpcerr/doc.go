// Package rpcerr turns the errors of the rooms below into what crosses the
// wire: one mapping, used for whole calls by the server's interceptor and for
// single items by the handlers of batches.
//
// It decides no policy and knows no service. A handler returns the error it got
// from below, wrapped or not, or makes one with [New] for what only it knows.
// A kind that is not in the mapping is the server's own fault: the client reads
// "internal error" and the cause goes to the log.
//
// Read [Status] first. The invariant: the text of an error reaches a client
// only when its kind is about the client's request; internals are logged here,
// once, and nowhere else.
package rpcerr
