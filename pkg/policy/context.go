package policy

import "context"

// callerKey is the key of the Caller in a context.
type callerKey struct{}

// NewContext returns a context that carries the caller of the call it is of.
func NewContext(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// FromContext returns the caller that [NewContext] put into the context. ok is
// false where no call of the server's API is being served.
func FromContext(ctx context.Context) (c Caller, ok bool) {
	c, ok = ctx.Value(callerKey{}).(Caller)
	return c, ok
}
