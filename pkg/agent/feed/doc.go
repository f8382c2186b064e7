// Package feed is the agent's half of the push stream: it keeps the agent's
// cache equal to what the server says the agent is entitled to, and reports how
// each attempt ended.
//
// It opens no connection, holds no entries and decides nothing about refusals;
// package agent does the first and the last, package cache the second. Against
// a server that does not speak the stream it follows SPIRE's entry.v1 and
// bundle.v1 instead, which can only be polled.
//
// Read [Follow] first. The invariant: the cache is told that it is in sync only
// when its own digest equals the server's, so a lost or doubled message ends in
// a full resync and never in a wrong set.
package feed
