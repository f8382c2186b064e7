package fleet

import (
	"errors"
	"fmt"

	feedv1 "github.com/credence-id/credence/proto/feed/v1"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Fields of feed.v1 that wire reads by itself.
const (
	fieldDelta   protowire.Number = 1 // of WatchResponse
	fieldUpserts protowire.Number = 3 // of Delta
)

// wire is the codec of one connection. It decodes everything as usual, but the
// entries of a Delta to their numbers in the table: they lie in upserts until
// the cache takes them, which is before the next message is received.
type wire struct {
	encoding.CodecV2
	table   *table
	upserts []uint32
}

func newWire(t *table) *wire {
	return &wire{CodecV2: encoding.GetCodecV2(protocodec.Name), table: t}
}

// Unmarshal is encoding.CodecV2.
func (w *wire) Unmarshal(data mem.BufferSlice, v any) error {
	resp, ok := v.(*feedv1.WatchResponse)
	if !ok {
		return w.CodecV2.Unmarshal(data, v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	w.upserts = w.upserts[:0]
	raw := buf.ReadOnlyData()
	num, typ, n := protowire.ConsumeTag(raw)
	if n < 0 || num != fieldDelta || typ != protowire.BytesType {
		return proto.Unmarshal(raw, resp)
	}
	body, m := protowire.ConsumeBytes(raw[n:])
	if m < 0 || n+m != len(raw) {
		return proto.Unmarshal(raw, resp) // which says what is wrong with it
	}
	delta, err := w.delta(body)
	resp.Step = &feedv1.WatchResponse_Delta{Delta: delta}
	return err
}

func (w *wire) delta(raw []byte) (*feedv1.Delta, error) {
	var rest []byte
	for len(raw) > 0 {
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return nil, errMalformed
		}
		m := protowire.ConsumeFieldValue(num, typ, raw[n:])
		if m < 0 {
			return nil, errMalformed
		}
		if num == fieldUpserts && typ == protowire.BytesType {
			body, _ := protowire.ConsumeBytes(raw[n:])
			v, err := w.table.version(body)
			if err != nil {
				return nil, fmt.Errorf("decoding an entry of a delta: %w", err)
			}
			w.upserts = append(w.upserts, v)
		} else {
			rest = append(rest, raw[:n+m]...)
		}
		raw = raw[n+m:]
	}
	d := &feedv1.Delta{}
	return d, proto.Unmarshal(rest, d)
}

var errMalformed = errors.New("a delta is not protobuf")
