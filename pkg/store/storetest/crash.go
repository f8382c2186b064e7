package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/credence-id/credence/pkg/store"
)

// Ack says that an Update of CrashLoad has returned without an error.
type Ack struct {
	Client, Update int
	Revision       store.Revision
}

// String is one line without its end; ParseAck reads it.
func (a Ack) String() string { return fmt.Sprintf("ack %d %d %d", a.Client, a.Update, a.Revision) }

// ParseAck reads what String wrote.
func ParseAck(line string) (a Ack, err error) {
	if _, err := fmt.Sscanf(line, "ack %d %d %d", &a.Client, &a.Update, &a.Revision); err != nil {
		return Ack{}, fmt.Errorf("parsing ack %q: %w", line, err)
	}
	return a, nil
}

const (
	crashParts = 5  // Keys that every update of a client writes alike.
	crashLog   = 12 // Numbered keys that a client keeps before it deletes the oldest.
	maxClients = 64
)

func partKey(client, part int) string { return fmt.Sprintf("%d/client/%d", part, client) }
func logKey(client, n int) string     { return fmt.Sprintf("log/%d/%06d", client, n) }

// CrashLoad is what a store does when it is cut off. Each client makes updates
// numbered from 1 (or from where the store stands), each of which writes the
// same number in several places, inserts a key and deletes an old one; ack is
// called, by one goroutine at a time for each client, after each. Some values
// are larger than a disk page; some Updates fail on purpose. There are at most
// 64 clients.
func CrashLoad(ctx context.Context, s store.Store, clients, updates int, ack func(Ack) error) error {
	var g errgroup.Group
	for client := range clients {
		g.Go(func() error {
			all, _, err := content(ctx, s, partKey(client, 0))
			if err != nil {
				return err
			}
			start := number(all[partKey(client, 0)])
			for n := start + 1; n <= start+updates; n++ {
				rev, err := CrashUpdate(ctx, s, client, n)
				if err != nil {
					return fmt.Errorf("client %d, update %d: %w", client, n, err)
				}
				if err := ack(Ack{client, n, rev}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// CrashUpdate makes one numbered update of CrashLoad.
func CrashUpdate(ctx context.Context, s store.Store, client, n int) (store.Revision, error) {
	if n%4 == 0 { // A neighbour that fails must leave nothing, crash or not.
		_, err := s.Update(ctx, func(tx store.RWTx) error {
			tx.Put(fmt.Sprintf("never/%d", n), []byte("never"))
			tx.Delete(partKey(client, n%crashParts))
			return errOnPurpose
		})
		if !errors.Is(err, errOnPurpose) {
			return 0, err
		}
	}
	return s.Update(ctx, func(tx store.RWTx) error {
		for part := range crashParts {
			value := strconv.Itoa(n)
			if part == 1 && n%3 == 0 {
				value += " " + strings.Repeat("x", 9000)
			}
			tx.Put(partKey(client, part), []byte(value))
		}
		tx.Put(logKey(client, n), []byte(strings.Repeat("l", n%500)))
		tx.Delete(logKey(client, n-crashLog))
		return nil
	})
}

func number(value string) int {
	digits, _, _ := strings.Cut(value, " ")
	n, _ := strconv.Atoi(digits)
	return n
}

// CheckCrash compares a store that was opened after a crash of CrashLoad with
// the acks given before it: each client's last acknowledged update is there,
// or the one it was making then, and nothing is there in part. It then makes
// an update of its own.
func CheckCrash(ctx context.Context, s store.Store, acked []Ack) error {
	last := make(map[int]Ack)
	var newest store.Revision
	for _, a := range acked {
		newest = max(newest, a.Revision)
		if a.Update > last[a.Client].Update {
			last[a.Client] = a
		}
	}
	var at store.Revision
	if err := s.View(ctx, func(tx store.Tx) error {
		at = tx.Revision()
		if at < newest {
			return fmt.Errorf("store is at revision %d, %d was acknowledged", at, newest)
		}
		return checkClients(tx, last)
	}); err != nil {
		return err
	}
	rev, err := s.Update(ctx, func(tx store.RWTx) error {
		tx.Put("after the crash", nil)
		return nil
	})
	if err != nil {
		return fmt.Errorf("update after the crash: %w", err)
	}
	if rev <= at {
		return fmt.Errorf("update after the crash got revision %d, store was at %d", rev, at)
	}
	return nil
}

func checkClients(tx store.Tx, last map[int]Ack) error {
	parts := make(map[string]store.KV)
	logs := make(map[string]bool)
	for kv, err := range tx.Scan("", "") {
		switch {
		case err != nil:
			return err
		case strings.HasPrefix(kv.Key, "log/"):
			logs[kv.Key] = true
		case strings.Contains(kv.Key, "/client/"):
			parts[kv.Key] = kv
		case kv.Key != "after the crash":
			return fmt.Errorf("key %q was never committed", kv.Key)
		}
	}
	wantLogs := make(map[string]bool)
	clients := 0
	for client := range maxClients {
		n, err := checkParts(parts, client, last[client])
		if err != nil {
			return err
		}
		if n > 0 {
			clients++
		}
		for i := max(1, n-crashLog+1); i <= n; i++ {
			wantLogs[logKey(client, i)] = true
		}
	}
	if len(parts) != clients*crashParts || !maps.Equal(logs, wantLogs) {
		return fmt.Errorf("%d keys and %d log keys for %d clients; want %d and %d", len(parts), len(logs), clients, clients*crashParts, len(wantLogs))
	}
	return nil
}

// checkParts returns which update of the client is there.
func checkParts(parts map[string]store.KV, client int, acked Ack) (int, error) {
	first := parts[partKey(client, 0)]
	n := number(string(first.Value))
	if n != acked.Update && n != acked.Update+1 {
		return n, fmt.Errorf("client %d is at update %d, %d was acknowledged", client, n, acked.Update)
	}
	if n == acked.Update && first.ModRevision != acked.Revision {
		return n, fmt.Errorf("client %d: update %d has revision %d, acknowledged as %d", client, n, first.ModRevision, acked.Revision)
	}
	for part := range crashParts {
		kv := parts[partKey(client, part)]
		if number(string(kv.Value)) != n || kv.ModRevision != first.ModRevision {
			return n, fmt.Errorf("client %d: update %d is there in part", client, n)
		}
	}
	return n, nil
}
