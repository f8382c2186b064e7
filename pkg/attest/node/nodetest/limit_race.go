//go:build race

package nodetest

import "time"

// Limit is how long one refusal may take (S07), with what the race detector adds
// to it.
const Limit = 100 * time.Millisecond
