package policy

import "context"

type contextKey struct{}

// NewContext returns a context that says who makes the call.
func NewContext(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, contextKey{}, c)
}

// FromContext says who makes the call; false where nobody was asked.
func FromContext(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(contextKey{}).(Caller)
	return c, ok
}
