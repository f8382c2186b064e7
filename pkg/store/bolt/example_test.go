package bolt_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/bolt"
)

func Example() {
	dir, err := os.MkdirTemp("", "store")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // An example's leftovers.
	ctx := context.Background()

	s, err := bolt.Open(bolt.Config{Path: filepath.Join(dir, "datastore.bolt")})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()

	// Read, decide and write in one Update.
	rev, err := s.Update(ctx, func(tx store.RWTx) error {
		if _, err := tx.Get("envoy/1"); err == nil {
			return fmt.Errorf("envoy/1 is taken")
		}
		tx.Put("envoy/1", []byte("Benjamin Franklin"))
		tx.Put("envoy/2", []byte("John Jay"))
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}

	// Read everything at one revision …
	var at store.Revision
	err = s.View(ctx, func(tx store.Tx) error {
		at = tx.Revision()
		for kv, err := range tx.Scan("envoy/", "") {
			if err != nil {
				return err
			}
			fmt.Printf("%s = %s (written at %d)\n", kv.Key, kv.Value, kv.ModRevision)
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("read at", at, "written at", rev)

	// … and follow every change after it.
	if _, err := s.Update(ctx, func(tx store.RWTx) error {
		tx.Delete("envoy/1")
		return nil
	}); err != nil {
		log.Fatal(err)
	}
	for batch, err := range s.Watch(ctx, "envoy/", at) {
		if err != nil {
			log.Fatal(err)
		}
		for _, e := range batch.Events {
			fmt.Printf("at %d: %s deleted: %v\n", batch.Revision, e.Key, e.Deleted())
		}
		break
	}

	// Output:
	// envoy/1 = Benjamin Franklin (written at 1)
	// envoy/2 = John Jay (written at 1)
	// read at 1 written at 1
	// at 2: envoy/1 deleted: true
}
