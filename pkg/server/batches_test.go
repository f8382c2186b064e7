package server

import (
	"fmt"
	"math"
	"strings"
	"testing"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/credence-id/credence/pkg/server/bundleapi"
	"github.com/credence-id/credence/pkg/server/entryapi"
	"github.com/credence-id/credence/pkg/server/trustdomainapi"
)

// batchLimits is how many items each batch may have, by service.
var batchLimits = map[string]int{
	"spire.api.server.entry.v1.Entry":             entryapi.MaxBatch,
	"spire.api.server.bundle.v1.Bundle":           bundleapi.MaxBatch,
	"spire.api.server.trustdomain.v1.TrustDomain": trustdomainapi.MaxBatch,
	"spire.api.server.svid.v1.SVID":               1000,
}

// apis are the methods that this server serves, by their descriptors.
func apis(t *testing.T, r *running) map[string]protoreflect.MethodDescriptor {
	t.Helper()
	out := make(map[string]protoreflect.MethodDescriptor)
	for service := range r.inside.newGRPC(localCredentials{}).GetServiceInfo() {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
		if err != nil {
			t.Fatal(err)
		}
		methods := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			out[fmt.Sprintf("/%s/%s", service, methods.Get(i).Name())] = methods.Get(i)
		}
	}
	return out
}

func newMessage(t *testing.T, d protoreflect.MessageDescriptor) protoreflect.Message {
	t.Helper()
	mt, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return mt.New()
}

// repeated is the message's first repeated field.
func repeated(m protoreflect.Message) protoreflect.List {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		if fields.Get(i).IsList() {
			return m.Mutable(fields.Get(i)).List()
		}
	}
	return nil
}

// S08: every batch has a limit, which holds at limit−1, limit and limit+1.
func TestS08_BatchLimits(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Server.RateLimit.Signing = new(bool)
	r := start(t, cfg)
	admin, agent := r.admin(t), r.attest(t)
	tried := 0
	for method, d := range apis(t, r) {
		if !strings.HasPrefix(string(d.Name()), "Batch") {
			continue
		}
		tried++
		limit, ok := batchLimits[string(d.Parent().FullName())]
		if !ok {
			t.Errorf("%s has no limit in batchLimits", method)
			continue
		}
		var conn grpc.ClientConnInterface = admin
		if strings.Contains(method, "SVID/") {
			conn = agent.conn
		}
		for _, n := range []int{limit - 1, limit, limit + 1} {
			req := newMessage(t, d.Input())
			items := repeated(req)
			for range n { // Empty ones, each refused by itself.
				items.Append(items.NewElement())
			}
			resp := newMessage(t, d.Output())
			err := conn.Invoke(t.Context(), method, req.Interface(), resp.Interface())
			switch {
			case status.Code(err) == codes.Unimplemented:
			case n <= limit && (err != nil || repeated(resp).Len() != n):
				t.Errorf("%s of %d: %v with %d results", method, n, err, repeated(resp).Len())
			case n > limit && (status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), fmt.Sprintf("at most %d are allowed", limit))):
				t.Errorf("%s of %d: %v, want that at most %d are allowed", method, n, err, limit)
			}
		}
	}
	if tried < 10 {
		t.Errorf("only %d methods were tried", tried)
	}
}

// S12: every list that has pages answers any page size, with messages that
// clients take.
func TestS12_EveryPageIsBounded(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	for i := range 3 {
		r.register(t, &types.Entry{ParentId: wireID("/node"), SpiffeId: wireID(fmt.Sprint("/x", i))})
	}
	admin, tried := r.admin(t), 0
	for method, d := range apis(t, r) {
		size := d.Input().Fields().ByName("page_size")
		if size == nil {
			continue
		}
		tried++
		for _, n := range []int32{math.MinInt32, -1, 0, 1, 2, 3, 999, 1000, 1001, math.MaxInt32} {
			req, resp := newMessage(t, d.Input()), newMessage(t, d.Output())
			req.Set(size, protoreflect.ValueOfInt32(n))
			if err := admin.Invoke(t.Context(), method, req.Interface(), resp.Interface()); err != nil {
				t.Errorf("%s with pages of %d: %v", method, n, err)
				continue
			}
			got := repeated(resp).Len()
			if weight := proto.Size(resp.Interface()); weight > 4<<20 || n > 0 && got > int(n) {
				t.Errorf("%s with pages of %d: %d items in %d bytes", method, n, got, weight)
			}
		}
	}
	if tried < 4 {
		t.Errorf("only %d methods were tried", tried)
	}
}

// S08: an agent's version.
func TestS08_VersionLimit(t *testing.T) {
	t.Parallel()
	r := start(t, testConfig(t))
	client := agentv1.NewAgentClient(r.attest(t).conn)
	for n, want := range map[int]codes.Code{254: codes.OK, 255: codes.OK, 256: codes.InvalidArgument} {
		if _, err := client.PostStatus(t.Context(), &agentv1.PostStatusRequest{AgentVersion: strings.Repeat("1", n)}); status.Code(err) != want {
			t.Errorf("a version of %d bytes: %v, want %v", n, err, want)
		}
	}
}
