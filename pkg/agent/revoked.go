package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
)

// errRevoked says why the server does not let this agent's SVID in.
var errRevoked = errors.New("the authority of the agent's SVID was revoked while the agent was away, so it must attest again")

// attestIfRevoked is told that the server, which is the right one, could not be
// connected to with the agent's SVID. If that is because its authority was
// revoked, the agent attests again, where its method and its evidence allow it,
// and errRenewed is returned. Else it is the error itself.
func (a *Agent) attestIfRevoked(ctx context.Context, own *nodeSVID, err error) error {
	if errors.Is(err, errUntrusted) || !time.Now().Before(own.notAfter()) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if revoked, asking := a.revoked(ctx, own); asking != nil || !revoked {
		return err // what is wrong is wrong without an SVID too
	}
	a.log.WarnContext(ctx, "the authority of the agent's SVID was revoked: attesting again", telemetry.AgentID, own.ID)
	if again := a.attest(ctx); again != nil {
		return fmt.Errorf("%w: %w", errRevoked, again)
	}
	return errRenewed
}

// revoked asks the server, as anybody may, for the bundle, and says whether the
// agent's SVID is good by it.
func (a *Agent) revoked(ctx context.Context, own *nodeSVID) (bool, error) {
	l, err := a.dial(ctx, nil)
	if err != nil {
		return false, err
	}
	defer a.closing(ctx, l)
	b, err := bundlev1.NewBundleClient(l.conn).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return false, fmt.Errorf("getting the server's bundle: %w", err)
	}
	if err := a.trust.learn(b); err != nil {
		return false, err
	}
	_, _, err = x509svid.Verify(own.Certificates, a.trust)
	return err != nil, nil
}
