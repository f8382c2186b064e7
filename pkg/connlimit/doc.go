// Package connlimit bounds what connections take of a server before anybody
// knows what they are for: how many there are, in total and by whoever they
// come from, and how much they send that nobody has taken.
//
// It closes nothing and serves nothing itself: a listener or a handshake asks
// it, and does as it says. Rates of calls are package ratelimit's.
//
// Read [Pool] first, for connections that come and go (strangers), then [Share],
// for those that stay (a machine's processes), then [Budget], for the bytes on
// one of them.
//
// The invariant: nobody is locked out for good by what others hold. In a Pool
// the oldest makes room, in a Share nobody gets all that is left.
package connlimit
