package peers

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// plain makes answers comparable: what is random gets a number, what is of the
// moment a distance from it, and certificates and tokens become what is in them.
type plain struct {
	names map[string]string // value → placeholder
	now   func() time.Time
}

func newPlain() *plain { return &plain{names: map[string]string{}, now: time.Now} }

var (
	uuid   = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	serial = regexp.MustCompile(`(SERIALNUMBER|2\.5\.4\.5)=[0-9]+`)
)

// name is the name of a random value that was saved, or just its kind.
func (p *plain) name(kind, value string) string {
	if name, ok := p.names[value]; ok || value == "" {
		return name
	}
	return "<" + kind + ">"
}

// words are a message, where third parties read it. That something is not
// valid or not allowed is said by the code; we say it in other words, which name
// the field and the next step.
func (p *plain) words(code codes.Code, message string) string {
	switch code {
	case codes.OK, codes.AlreadyExists, codes.NotFound:
		return p.text(message)
	}
	return "<words>"
}

func (p *plain) text(s string) string {
	for value, name := range p.names {
		if len(value) > 8 {
			s = strings.ReplaceAll(s, value, name)
		}
	}
	s = serial.ReplaceAllString(s, "$1=<n>")
	return uuid.ReplaceAllString(s, "<uuid>")
}

// moment is how far t is from now, to the minute, or roughly when that is long:
// what was made when the server started ages while the table is played.
func (p *plain) moment(t time.Time) string {
	d, grain := t.Sub(p.now()), time.Minute
	if d.Abs() > 15*time.Minute {
		grain = 5 * time.Minute
	}
	return "now" + fmt.Sprintf("%+v", d.Round(grain))
}

// message is every field that is set, by name.
func (p *plain) message(m protoreflect.Message, unordered []string) any {
	out := map[string]any{}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := string(f.Name())
		switch {
		case f.IsList():
			list := make([]any, 0, v.List().Len())
			for i := range v.List().Len() {
				list = append(list, p.value(f, v.List().Get(i), unordered))
			}
			if slices.Contains(unordered, name) {
				sort.SliceStable(list, func(i, j int) bool { return order(list[i]) < order(list[j]) })
			}
			out[name] = list
		case f.IsMap():
			entries := map[string]any{}
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				entries[k.String()] = p.value(f.MapValue(), v, unordered)
				return true
			})
			out[name] = entries
		default:
			out[name] = p.value(f, v, unordered)
		}
		return true
	})
	return out
}

func order(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (p *plain) value(f protoreflect.FieldDescriptor, v protoreflect.Value, unordered []string) any {
	name := string(f.Name())
	switch f.Kind() {
	case protoreflect.MessageKind:
		if s, ok := v.Message().Interface().(*types.Status); ok {
			code := codes.Code(s.GetCode())
			return map[string]any{"code": code.String(), "message": p.words(code, s.GetMessage())}
		}
		return p.message(v.Message(), unordered)
	case protoreflect.EnumKind:
		return string(f.Enum().Values().ByNumber(v.Enum()).Name())
	case protoreflect.BytesKind:
		return p.bytes(v.Bytes())
	case protoreflect.StringKind:
		switch name {
		case "key_id", "authority_id":
			return p.name("key", v.String())
		case "x509svid_serial_number":
			return "<serial>"
		case "token":
			return p.token(v.String())
		case "next_page_token":
			return "<page>"
		}
		return p.text(v.String())
	case protoreflect.Int64Kind:
		if strings.HasSuffix(name, "_at") && v.Int() != 0 {
			if v.Int() < 1e9 {
				return v.Int()
			}
			return p.moment(time.Unix(v.Int(), 0))
		}
		return v.Int()
	default:
		if name == "uptime" {
			return "<uptime>"
		}
		return v.Interface()
	}
}

// bytes are certificates, a public key, or what they are.
func (p *plain) bytes(b []byte) any {
	if name, ok := p.names[string(b)]; ok {
		return name
	}
	if certs, err := x509.ParseCertificates(b); err == nil && len(certs) > 0 {
		var out []any
		for _, c := range certs {
			out = append(out, p.certificate(c))
		}
		return out
	}
	if key, err := x509.ParsePKIXPublicKey(b); err == nil {
		return fmt.Sprintf("a %T", key)
	}
	return fmt.Sprintf("%d bytes %x", len(b), b[:min(16, len(b))])
}

func (p *plain) certificate(c *x509.Certificate) any {
	var extensions, uris []string
	for _, e := range c.Extensions {
		extensions = append(extensions, fmt.Sprintf("%v critical=%v", e.Id, e.Critical))
	}
	slices.Sort(extensions)
	for _, u := range c.URIs {
		uris = append(uris, p.text(u.String()))
	}
	subject := c.Subject.String()
	for _, n := range c.Subject.Names {
		if n.Type.String() == "2.5.4.45" {
			subject = "with an x500UniqueIdentifier, " + strings.Join(c.Subject.Organization, ",")
		}
	}
	return map[string]any{
		"subject": p.text(subject), "issuer": p.text(c.Issuer.String()), "uris": uris, "dns": c.DNSNames,
		"life": c.NotAfter.Sub(c.NotBefore).String(), "until": p.moment(c.NotAfter),
		"signature": c.SignatureAlgorithm.String(), "key": fmt.Sprintf("%T", c.PublicKey),
		"usage": fmt.Sprintf("%b %v", c.KeyUsage, c.ExtKeyUsage), "ca": fmt.Sprint(c.IsCA, c.MaxPathLen, c.MaxPathLenZero),
		"extensions": extensions, "serial bits": c.SerialNumber.BitLen() > 60,
	}
}

// token is what is in a JWS.
func (p *plain) token(s string) any {
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return p.text(s)
	}
	var out []any
	for _, part := range parts[:2] {
		raw, err := base64.RawURLEncoding.DecodeString(part)
		var m map[string]any
		if err == nil {
			err = json.Unmarshal(raw, &m)
		}
		if err != nil {
			return err.Error()
		}
		for name, v := range m {
			switch v := v.(type) {
			case float64:
				m[name] = p.moment(time.Unix(int64(v), 0))
			case string:
				m[name] = p.text(v)
				if name == "kid" {
					m[name] = p.name("key", v)
				}
			}
		}
		out = append(out, m)
	}
	return out
}
