// Package feedapi is the server's half of the push stream (credence.feed.v1):
// it tells each agent, as it happens, what the agent is entitled to.
//
// It decides nothing: who is entitled to what is package entitle's answer, who
// may call is the interceptor's, and how long a stream may live is the word of
// agentapi.Authenticator, which ends the stream's context.
//
// Read [Hub] first: the follower of the log publishes each commit to it, and
// it marks what may have changed for which stream. Then sender.round: a stream
// computes what it sends from the present state, when it can send. So the
// invariant: what is queued for a stream is a set of names and never content;
// it has a bounded size however slow the reader is, and nothing reaches an
// agent that it is not entitled to at the moment of sending.
package feedapi
