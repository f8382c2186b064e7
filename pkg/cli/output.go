package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Format is the value of the flag -output: pretty (the zero value) or json.
type Format struct{ json bool }

// OutputFlag adds the flag -output to flags.
func OutputFlag(flags *pflag.FlagSet) *Format {
	f := new(Format)
	flags.Var(f, "output", "how to print the answer: pretty or json")
	return f
}

// String is the name of the format.
func (f *Format) String() string {
	if f.json {
		return "json"
	}
	return "pretty"
}

// Set reads the name of a format.
func (f *Format) Set(name string) error {
	switch name {
	case "pretty", "json":
		f.json = name == "json"
		return nil
	}
	return fmt.Errorf("%q is not an output format: use pretty or json", name)
}

// Type is what usage texts call a format.
func (f *Format) Type() string { return "pretty|json" }

// IsJSON says whether -output json was asked for.
func (f *Format) IsJSON() bool { return f.json }

// Print writes an answer to w: what pretty prints, or messages as JSON on one
// line, with proto field names, zero values, and 64-bit integers as strings.
// Several messages become a JSON list.
func (f *Format) Print(w io.Writer, pretty func(io.Writer) error, messages ...proto.Message) error {
	if !f.json {
		return pretty(w)
	}
	options := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}
	var line bytes.Buffer
	if len(messages) != 1 {
		line.WriteByte('[')
	}
	for i, m := range messages {
		if i > 0 {
			line.WriteByte(',')
		}
		text, err := options.Marshal(m)
		if err != nil {
			return fmt.Errorf("encoding answer: %w", err)
		}
		// protojson varies its spaces on purpose; scripts get none.
		if err := json.Compact(&line, text); err != nil {
			return fmt.Errorf("encoding answer: %w", err)
		}
	}
	if len(messages) != 1 {
		line.WriteByte(']')
	}
	line.WriteByte('\n')
	_, err := line.WriteTo(w)
	return err
}
