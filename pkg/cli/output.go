package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

const (
	prettyFormat = "pretty"
	jsonFormat   = "json"
	yamlFormat   = "yaml"
)

// Format is the value of the flag -output: pretty (the zero value), json or
// yaml.
type Format struct{ name string }

// OutputFlag adds the flag -output, also known as -o, to flags.
func OutputFlag(flags *pflag.FlagSet) *Format {
	f := new(Format)
	flags.VarP(f, "output", "o", "how to print the answer: pretty, json or yaml")
	return f
}

// String is the name of the format.
func (f *Format) String() string {
	if f.name == "" {
		return prettyFormat
	}
	return f.name
}

// Set reads the name of a format, in SPIRE's words when it refuses one.
func (f *Format) Set(text string) error {
	name := strings.ToLower(text)
	if name == "prettyprint" {
		name = prettyFormat
	}
	switch name {
	case prettyFormat, jsonFormat, yamlFormat:
	default:
		return fmt.Errorf("bad formatter flag: unknown format option: %q", text)
	}
	if f.name != "" && f.name != name {
		return fmt.Errorf("the output format has already been set to %q", f.name)
	}
	f.name = name
	return nil
}

// Type is what usage texts call a format.
func (f *Format) Type() string { return "pretty|json|yaml" }

// IsJSON says whether -output json was asked for.
func (f *Format) IsJSON() bool { return f.name == jsonFormat }

// IsPretty says whether the answer is printed for people.
func (f *Format) IsPretty() bool { return f.String() == prettyFormat }

// Print writes an answer to w: what pretty prints, or messages as JSON on one
// line, or the same data as YAML. As SPIRE prints them: proto field names in
// alphabetical order, zero values included, messages that are not set left
// out, 64-bit integers as strings. Several messages become a list, none is no
// output.
func (f *Format) Print(w io.Writer, pretty func(io.Writer) error, messages ...proto.Message) error {
	if f.IsPretty() {
		return pretty(w)
	}
	values := make([]any, 0, len(messages))
	for _, m := range messages {
		v, err := plain(m)
		if err != nil {
			return err
		}
		values = append(values, v)
	}
	switch len(values) {
	case 0:
		return nil
	case 1:
		return f.print(w, values[0])
	}
	return f.print(w, values)
}

// PrintValue is [Format.Print] for what is not a message: value as
// encoding/json writes it.
func (f *Format) PrintValue(w io.Writer, pretty func(io.Writer) error, value any) error {
	if f.IsPretty() {
		return pretty(w)
	}
	return f.print(w, value)
}

func (f *Format) print(w io.Writer, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encoding answer: %w", err)
	}
	if f.name == yamlFormat {
		return printYAML(w, text)
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

// plain is a message as maps, lists, strings, numbers and booleans.
func plain(m proto.Message) (any, error) {
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encoding answer: %w", err)
	}
	v, err := decodeJSON(text)
	if err != nil {
		return nil, err
	}
	return withoutNulls(v), nil
}

func decodeJSON(text []byte) (any, error) {
	var v any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber() // A float64 would round large integers.
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("encoding answer: %w", err)
	}
	return v, nil
}

func withoutNulls(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if value == nil {
				delete(v, key)
			} else {
				v[key] = withoutNulls(value)
			}
		}
	case []any:
		kept := make([]any, 0, len(v))
		for _, value := range v {
			if value != nil {
				kept = append(kept, withoutNulls(value))
			}
		}
		return kept
	}
	return v
}

// printYAML writes JSON text as YAML that means the same.
func printYAML(w io.Writer, text []byte) error {
	v, err := decodeJSON(text)
	if err != nil {
		return err
	}
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	if err := e.Encode(forYAML(v)); err != nil {
		return fmt.Errorf("encoding answer: %w", err)
	}
	return e.Close()
}

// forYAML turns the numbers of JSON, which package yaml takes for strings, into
// numbers.
func forYAML(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			v[key] = forYAML(value)
		}
	case []any:
		for i, value := range v {
			v[i] = forYAML(value)
		}
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		if n, err := v.Float64(); err == nil {
			return n
		}
	}
	return v
}
