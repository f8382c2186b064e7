package server

import (
	"slices"
	"strings"
	"testing"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/config/configtest"
)

// TestTheFullConfigurationHasEveryKey: each key is in server_full.conf, and with
// all of them switched on, nothing is wrong but what this version does not
// support or what excludes another.
func TestTheFullConfigurationHasEveryKey(t *testing.T) {
	t.Parallel()
	keys := slices.Concat(config.Keys(Config{}), config.Keys(boltData{}), config.Keys(etcdData{}), config.Keys(diskData{}))
	on := configtest.EveryKey(t, "../../conf/server/server_full.conf", keys)
	c, err := load(t, on)
	if err != nil {
		t.Fatal(err)
	}
	problems := c.Validate()
	if problems == nil {
		t.Fatal("with every key switched on nothing is refused")
	}
	for _, problem := range strings.Split(problems.Error(), "\n") {
		if !slices.ContainsFunc([]string{"not supported: ", "only one DataStore can be used"}, func(s string) bool { return strings.Contains(problem, s) }) {
			t.Error(problem)
		}
	}
	notices, refused := c.unsupported()
	if len(notices) == 0 || refused == nil {
		t.Errorf("%d keys are accepted, refused: %v", len(notices), refused)
	}
}
