package memkey_test

import (
	"testing"

	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/keys/keystest"
	"github.com/credence-id/credence/pkg/keys/memkey"
)

func TestManager(t *testing.T) {
	t.Parallel()
	keystest.Run(t, func(testing.TB) keystest.Opener {
		return func(testing.TB) keys.Manager { return memkey.New() }
	})
}
