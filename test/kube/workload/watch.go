package main

import (
	"context"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// watch tells of every answer of a stream that stays open, and of a JWT-SVID
// once it has an identity.
func watch(ctx context.Context) error {
	client, err := workloadapi.New(ctx, workloadapi.WithBackoffStrategy(briskly{}))
	if err != nil {
		return err
	}
	defer hangUp(client)
	w := &watcher{client: client}
	err = client.WatchX509Context(ctx, w)
	if errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled {
		return nil
	}
	return err
}

type watcher struct {
	client *workloadapi.Client
	asked  bool
}

func (w *watcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	for _, s := range c.SVIDs {
		tell(event{What: "x509", ID: s.ID.String(), Serial: s.Certificates[0].SerialNumber.String(), Count: len(c.SVIDs)})
	}
	if w.asked {
		return
	}
	w.asked = true
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	token, err := w.client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "test"})
	if err != nil {
		tell(event{What: "jwt", Error: err.Error()})
		return
	}
	tell(event{What: "jwt", ID: token.ID.String()})
}

func (w *watcher) OnX509ContextWatchError(err error) {
	tell(event{What: "refused", Error: status.Convert(err).Message()})
}

// briskly tries again soon: what is measured is the agent, not the patience of
// a client.
type briskly struct{}

func (briskly) NewBackoff() workloadapi.Backoff { return briskly{} }
func (briskly) Next() time.Duration             { return 100 * time.Millisecond }
func (briskly) Reset()                          {}
