//go:build !race

package nodetest

import "time"

// Limit is how long one refusal may take (S07).
const Limit = 10 * time.Millisecond
