package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// started is about when the container was.
var started = time.Now()

// verbs are what a pod can be told to do.
var verbs = map[string]func(context.Context) error{
	"watch":  watch,  // every X509-SVID it is given, and one JWT-SVID
	"again":  again,  // one call a second, each on a connection of its own
	"serve":  serve,  // mTLS on :8443
	"call":   call,   // a handshake with $PEER each 50 ms
	"mounts": mounts, // the node's mounts below $MOUNTS
	"nested": nested, // fetch from a cgroup that is named like $VICTIM's
	"hand":   hand,   // connect, and hand the socket on at $MEET
	"take":   take,   // take a socket at $MEET, and fetch over it
	"mkdir":  idle,   // its volumes make directories on the node
}

func main() {
	if len(os.Args) != 2 || verbs[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: workload VERB")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := verbs[os.Args[1]](ctx); err != nil {
		tell(event{What: "failed", Error: err.Error()})
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

// event is one line of output.
type event struct {
	// What happened.
	What string `json:"what"`
	// At is when, in Unix milliseconds; Since is how long after the container's
	// start, in milliseconds.
	At    int64   `json:"at"`
	Since float64 `json:"since"`
	// ID is a SPIFFE ID; Serial is an X509-SVID's.
	ID     string `json:"id,omitempty"`
	Serial string `json:"serial,omitempty"`
	// Count is how many.
	Count int `json:"count,omitempty"`
	// Error is what went wrong.
	Error string `json:"error,omitempty"`
}

var out sync.Mutex

func tell(e event) {
	now := time.Now()
	e.At, e.Since = now.UnixMilli(), float64(now.Sub(started).Microseconds())/1e3
	out.Lock()
	defer out.Unlock()
	if err := json.NewEncoder(os.Stdout).Encode(e); err != nil {
		os.Exit(3) // nobody is listening
	}
}

func idle(ctx context.Context) error {
	tell(event{What: "idle"})
	<-ctx.Done()
	return nil
}
