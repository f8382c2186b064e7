package workloadapi

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// encoded is a message that is encoded already: one for all the streams that
// are sent the same.
type encoded []byte

// codec is gRPC's own for protobuf, but for messages that are encoded.
type codec struct{}

var _ encoding.CodecV2 = codec{}

// Marshal encodes a message.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	if data, ok := v.(encoded); ok {
		return mem.BufferSlice{mem.SliceBuffer(data)}, nil
	}
	return encoding.GetCodecV2(proto.Name).Marshal(v)
}

// Unmarshal decodes a message.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	if _, ok := v.(encoded); ok {
		return fmt.Errorf("a %T can only be sent", v)
	}
	return encoding.GetCodecV2(proto.Name).Unmarshal(data, v)
}

// Name is protobuf's.
func (codec) Name() string { return proto.Name }
