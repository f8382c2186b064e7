package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// position is where something is declared.
type position struct {
	file string
	line int // from 1
}

func (p position) String() string { return fmt.Sprintf("%s:%d", p.file, p.line) }

// declared is a record and where it is.
type declared struct {
	at     position
	record *record
}

// Fields of a file, and of what is in it.
var (
	fileFields      = []string{"entries"}
	selectorFields  = []string{"type", "value"}
	attributeFields = []string{"disable_x509_svid_prefetch", "jwt_svid_include_jti"}
	recordFields    = []string{
		"entry_id", "parent_id", "spiffe_id", "selectors", "x509_svid_ttl", "jwt_svid_ttl", "federates_with", "dns_names",
		"admin", "downstream", "store_svid", "hint", "entryExpiry", "revision_number", "created_at", "additional_attributes",
	}
)

// parse reads the records of a JSON or YAML text, which is called name in
// errors. YAML may have several documents. That there are none has to be said,
// by an empty list.
func parse(name string, text []byte) ([]declared, error) {
	documents, err := nodes(text)
	if err != nil {
		return nil, inFile(name, err)
	}
	r := reader{file: name}
	for _, d := range documents {
		r.document(d)
	}
	if !r.lists && len(r.problems) == 0 {
		// What failed to write a file leaves an empty one, which must not be a
		// reason to delete everything.
		return nil, fmt.Errorf("%s: there are no entries in it; write entries: [] to declare none", name)
	}
	return r.records, errors.Join(r.problems...)
}

// inFile puts the file's name before an error that says which line it means.
func inFile(name string, err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		return fmt.Errorf("%s:%s", name, rest)
	}
	return fmt.Errorf("%s: %s", name, text)
}

// reader turns nodes into records and collects what is wrong with them.
type reader struct {
	file     string
	records  []declared
	problems []error
	lists    bool // there is a list of entries, perhaps an empty one
}

func (r *reader) problem(n *yaml.Node, format string, args ...any) {
	r.problems = append(r.problems, fmt.Errorf("%s: %s", position{r.file, n.Line}, fmt.Sprintf(format, args...)))
}

func (r *reader) document(n *yaml.Node) {
	r.fields(n, "a file", fileFields, func(_ string, list *yaml.Node) {
		if list.Kind != yaml.SequenceNode {
			r.problem(list, "entries has to be a list")
			return
		}
		r.lists = true
		for _, item := range list.Content {
			r.record(item)
		}
	})
}

func (r *reader) record(n *yaml.Node) {
	before := len(r.problems)
	r.fields(n, "an entry", recordFields, func(name string, value *yaml.Node) {
		switch name {
		case "selectors":
			r.selectors(value)
		case "additional_attributes":
			r.fields(value, name, attributeFields, func(string, *yaml.Node) {})
		}
	})
	if len(r.problems) > before {
		return
	}
	d := declared{at: position{r.file, n.Line}, record: new(record)}
	err := n.Decode(d.record)
	if wrong, ok := errors.AsType[*yaml.TypeError](err); ok {
		for _, text := range wrong.Errors {
			r.problems = append(r.problems, inFile(r.file, errors.New(text)))
		}
		return
	}
	if err != nil {
		r.problem(n, "%v", err)
		return
	}
	r.records = append(r.records, d)
}

func (r *reader) selectors(list *yaml.Node) {
	if list.Kind != yaml.SequenceNode {
		r.problem(list, "selectors has to be a list")
		return
	}
	for _, s := range list.Content {
		switch s = resolve(s); {
		case s.Kind != yaml.ScalarNode:
			r.fields(s, "a selector", selectorFields, func(string, *yaml.Node) {})
		case !strings.Contains(s.Value, ":"):
			r.problem(s, "selector %q must be formatted as type:value", s.Value)
		}
	}
}

// fields calls do for each field of a mapping, if it is one with known fields,
// each there once.
func (r *reader) fields(n *yaml.Node, what string, known []string, do func(name string, value *yaml.Node)) {
	n = resolve(n)
	if n.Kind != yaml.MappingNode {
		r.problem(n, "%s has to have fields: %s", what, strings.Join(known, ", "))
		return
	}
	seen := make(map[string]bool, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		switch {
		case !slices.Contains(known, name.Value):
			r.problem(name, "unknown field %q; the fields of %s are %s", name.Value, what, strings.Join(known, ", "))
			continue
		case seen[name.Value]:
			r.problem(name, "field %q is there twice", name.Value)
			continue
		}
		seen[name.Value] = true
		do(name.Value, resolve(value))
	}
}

// resolve is what an alias stands for.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// UnmarshalYAML reads a selector, which in YAML may also be written as
// type:value.
func (s *selector) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		s.Type, s.Value, _ = strings.Cut(n.Value, ":")
		return nil
	}
	type plain selector
	return n.Decode((*plain)(s))
}

// nodes are the documents of a text. JSON is read as JSON: package yaml does not
// know all its escapes.
func nodes(text []byte) ([]*yaml.Node, error) {
	if json.Valid(text) {
		j := jsonReader{text: text, decoder: json.NewDecoder(bytes.NewReader(text)), line: 1}
		j.decoder.UseNumber()
		n, err := j.node()
		return []*yaml.Node{n}, err
	}
	var out []*yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var n yaml.Node
		err := d.Decode(&n)
		switch {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return nil, err
		case len(n.Content) == 0 || n.Content[0].Tag == "!!null":
			continue // An empty document, such as after the last "---".
		}
		out = append(out, n.Content[0])
	}
}

// jsonReader makes nodes of JSON text that is valid.
type jsonReader struct {
	text    []byte
	decoder *json.Decoder
	read    int64 // bytes that line has counted
	line    int
}

func (j *jsonReader) node() (*yaml.Node, error) {
	token, err := j.decoder.Token()
	if err != nil {
		return nil, err
	}
	end := j.decoder.InputOffset()
	j.line += bytes.Count(j.text[j.read:end], []byte("\n"))
	j.read = end
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: j.line}
	switch v := token.(type) {
	case json.Delim:
		n.Kind = yaml.SequenceNode
		if v == '{' {
			n.Kind = yaml.MappingNode
		}
		for j.decoder.More() {
			item, err := j.node()
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, item)
		}
		_, err = j.decoder.Token() // The closing bracket.
	case string:
		n.Tag, n.Value = "!!str", v
	case bool:
		n.Tag, n.Value = "!!bool", fmt.Sprint(v)
	case json.Number:
		n.Tag, n.Value = "", v.String()
	default:
		n.Tag, n.Value = "!!null", "null"
	}
	return n, err
}
