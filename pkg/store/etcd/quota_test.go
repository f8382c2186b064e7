package etcd_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/etcd"
	"github.com/credence-id/credence/pkg/store/etcd/etcdtest"
)

// TestQuotaRace fills etcd from many sides: of what meets the end of the quota
// only as it is applied, nobody says that it was not written.
func TestQuotaRace(t *testing.T) {
	t.Parallel()
	s := open(t, etcd.Config{Endpoints: []string{etcdtest.New(t, etcdtest.Quota(16<<20))}, History: -1})
	var mu sync.Mutex
	refused, done := make(map[string]bool), make(map[string]bool)
	var clients sync.WaitGroup
	for c := range 32 {
		clients.Go(func() {
			for n := 0; ; n++ {
				key := fmt.Sprintf("big/%d/%d", c, n)
				_, err := s.Update(t.Context(), func(tx store.RWTx) error {
					tx.Put(key, make([]byte, 100_000))
					return nil
				})
				mu.Lock()
				done[key] = err == nil
				refused[key] = err != nil && strings.Contains(err.Error(), "nothing was written")
				mu.Unlock()
				if err != nil {
					if !errors.Is(err, store.ErrUnavailable) {
						t.Errorf("Update: %v", err)
					}
					return
				}
			}
		})
	}
	clients.Wait()
	for key := range done {
		err := s.View(t.Context(), func(tx store.Tx) error { _, err := tx.Get(key); return err })
		switch {
		case err == nil && refused[key]:
			t.Errorf("%s is there, and was said not to have been written", key)
		case err != nil && done[key]:
			t.Errorf("%s was written, and is not there: %v", key, err)
		}
	}
}
