package server

import (
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// S07: messages that a stranger begins and never ends are held in memory, on as
// many streams as it likes, so the connection has an end.
func TestS07_StrangersConnectionIsBounded(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	a := attack(t, r)
	gone := a.drain()
	// Each stream says that a message of 4 MiB comes, sends what the initial
	// window allows and leaves it at that.
	begun := append([]byte{0, 0, 0x3f, 0xff, 0xff}, make([]byte, 16<<10-5)...)
	more := make([]byte, 16<<10)
	sent := 0
	for id := uint32(1); id < 2*maxStreams; id += 2 {
		err := a.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: a.block(t), EndHeaders: true})
		for _, data := range [][]byte{begun, more, more} {
			if err == nil {
				err = a.WriteData(id, false, data)
				sent += len(data)
			}
		}
		if err != nil {
			break // The server hung up.
		}
	}
	select {
	case <-gone:
	case <-time.After(patience):
		t.Fatalf("the server takes more than %d bytes from a stranger", sent)
	}

	// Whoever attests does not notice, not even with the largest message.
	client := agentv1.NewAgentClient(r.dial(t, nil))
	stream, err := client.AttestAgent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data:   &types.AttestationData{Type: "join_token", Payload: make([]byte, 64<<10)},
		Params: &agentv1.AgentX509SVIDParams{Csr: csr(t, newKey(t))},
	}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a payload of the largest size: %v", err)
	}

	// A caller with a certificate has no such end.
	bundles := bundlev1.NewBundleClient(r.attest(t).conn)
	filler := &bundlev1.GetBundleRequest{}
	filler.ProtoReflect().SetUnknown(append([]byte{0xfa, 0x7f, 0x80, 0x80, 0x20}, make([]byte, 512<<10)...))
	for range 4 {
		if _, err := bundles.GetBundle(t.Context(), filler); err != nil {
			t.Fatal(err)
		}
	}
}
