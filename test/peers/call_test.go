package peers

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// call is one line of the table: a request that is made of both servers.
type call struct {
	// name is unique; differences refers to it.
	name string
	// as is who calls; the zero value is the local administrator.
	as caller
	// method is service and method without "spire.api.server.".
	method string
	// request is a text proto. $name is a value saved before, or one that the
	// player has from the start, as a quoted string.
	request string
	// save keeps values of the answer for later requests: name → path in it.
	save map[string]string
	// do takes the place of method and request.
	do func(p *player) (proto.Message, error)
	// unordered names repeated fields of the answer whose order nobody promises.
	unordered []string
}

type caller string

const (
	local      caller = ""
	anyone     caller = "anyone" // TLS without a certificate
	agent      caller = "agent"
	admin      caller = "admin"
	downstream caller = "downstream"
	workload   caller = "workload" // a certificate of the trust domain, without any right
)

// player makes the calls of one side, in order.
type player struct {
	*side
	conns map[caller]*grpc.ClientConn
	vars  map[string]string
	plain *plain
	as    caller // of the call under way
}

func newPlayer(s *side, vars map[string]string) *player {
	p := &player{side: s, conns: map[caller]*grpc.ClientConn{local: s.local, anyone: s.tcp(nil)}, vars: map[string]string{}, plain: newPlain()}
	for name, value := range vars {
		p.vars[name] = value
	}
	return p
}

// answer is what came back, without what is random or of the moment.
type answer struct {
	Message any    `json:",omitempty"`
	Code    string `json:",omitempty"`
	Error   string `json:",omitempty"`
	Details []any  `json:",omitempty"`
}

func (p *player) play(t *testing.T, c call) answer {
	t.Helper()
	do := c.do
	p.as = c.as
	if do == nil {
		do = func(p *player) (proto.Message, error) { return p.invoke(c) }
	}
	m, err := do(p)
	if err != nil {
		s := status.Convert(err)
		a := answer{Code: s.Code().String(), Error: p.plain.words(s.Code(), s.Message())}
		for _, d := range s.Details() {
			if m, ok := d.(proto.Message); ok {
				a.Details = append(a.Details, p.plain.message(m.ProtoReflect(), nil))
			}
		}
		return a
	}
	for name, path := range c.save {
		value, ok := lookUp(m.ProtoReflect(), strings.Split(path, "."))
		if !ok {
			t.Logf("%s: %s: the answer has no %s: %v", p.bin.name, c.name, path, m)
		}
		p.vars[name] = value
		p.plain.names[value] = "$" + name
	}
	return answer{Message: p.plain.message(m.ProtoReflect(), c.unordered)}
}

var variable = regexp.MustCompile(`\$[a-zA-Z0-9_]+`)

func (p *player) invoke(c call) (proto.Message, error) {
	full := c.method
	if !strings.HasPrefix(full, "grpc.") {
		full = "spire.api.server." + full
	}
	service, name, _ := strings.Cut(full, "/")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return nil, err
	}
	method := d.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(name))
	if method == nil {
		return nil, fmt.Errorf("no method %s", full)
	}
	req, err := newMessage(method.Input())
	if err != nil {
		return nil, err
	}
	text := p.fill(c.request)
	if err := prototext.Unmarshal([]byte(text), req); err != nil {
		return nil, fmt.Errorf("%s: %w", text, err)
	}
	resp, err := newMessage(method.Output())
	if err != nil {
		return nil, err
	}
	conn := p.conns[c.as]
	if conn == nil {
		return nil, fmt.Errorf("there is no connection as %s", c.as)
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), 15*time.Second)
	defer cancel()
	return resp, conn.Invoke(ctx, "/"+full, req, resp)
}

func newMessage(d protoreflect.MessageDescriptor) (proto.Message, error) {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		return nil, err
	}
	return t.New().Interface(), nil
}

// fill puts in the values of a text proto's variables.
func (p *player) fill(text string) string {
	return variable.ReplaceAllStringFunc(text, func(name string) string { return quote(p.vars[name[1:]]) })
}

// quote is a string or bytes as a text proto has them.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		if c := s[i]; c >= 0x20 && c < 0x7f && c != '"' && c != '\\' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, `\%03o`, c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// lookUp follows names of fields and indexes of lists.
func lookUp(m protoreflect.Message, path []string) (string, bool) {
	f := m.Descriptor().Fields().ByName(protoreflect.Name(path[0]))
	if f == nil || !m.Has(f) {
		return "", false
	}
	v, rest := m.Get(f), path[1:]
	if f.IsList() {
		if len(rest) == 0 {
			return "", false
		}
		i, err := strconv.Atoi(rest[0])
		if err != nil || i >= v.List().Len() {
			return "", false
		}
		v, rest = v.List().Get(i), rest[1:]
	}
	switch {
	case f.Kind() == protoreflect.MessageKind && len(rest) > 0:
		return lookUp(v.Message(), rest)
	case f.Kind() == protoreflect.BytesKind:
		return string(v.Bytes()), true
	}
	return v.String(), true
}

// undo takes away what one side may have created and the other not.
func undo(name string) call {
	return call{name: name, do: func(p *player) (proto.Message, error) {
		_, err := entryv1.NewEntryClient(p.local).BatchDeleteEntry(p.t.Context(), &entryv1.BatchDeleteEntryRequest{Ids: []string{"differs"}})
		return &entryv1.BatchDeleteEntryResponse{}, err
	}}
}
