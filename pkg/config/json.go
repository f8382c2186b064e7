package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// parseJSON reads a JSON object, keeping the line of each value.
func parseJSON(data []byte) (*value, error) {
	r := jsonReader{data: data, dec: json.NewDecoder(bytes.NewReader(data))}
	r.dec.UseNumber()
	root, err := r.value()
	if err != nil {
		return nil, r.at(err)
	}
	if _, err := r.dec.Token(); !errors.Is(err, io.EOF) {
		return nil, r.at(errors.New("something follows the closing brace of the file"))
	}
	return root, nil
}

type jsonReader struct {
	data  []byte
	dec   *json.Decoder
	seen  int64 // bytes in which line ends have been counted
	lines int
}

// line is where the token read last ended.
func (r *jsonReader) line() int {
	end := r.dec.InputOffset()
	r.lines += bytes.Count(r.data[r.seen:end], []byte("\n"))
	r.seen = end
	return 1 + r.lines
}

func (r *jsonReader) at(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("file ends too early: a closing brace or bracket is missing")
	}
	line := r.line()
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		line = 1 + bytes.Count(r.data[:min(int(syntax.Offset), len(r.data))], []byte("\n"))
	}
	return &lineError{line: line, msg: err.Error()}
}

func (r *jsonReader) value() (*value, error) {
	t, err := r.dec.Token()
	if err != nil {
		return nil, err
	}
	v := &value{line: r.line()}
	switch t := t.(type) {
	case nil:
		v.kind = null
	case string:
		v.kind, v.text = text, t
	case json.Number:
		v.kind, v.text = number, t.String()
	case bool:
		v.kind, v.text = boolean, fmt.Sprint(t)
	case json.Delim:
		if t == '[' {
			return v, r.list(v)
		}
		return v, r.object(v)
	}
	return v, nil
}

func (r *jsonReader) list(v *value) error {
	v.kind = list
	for r.dec.More() {
		e, err := r.value()
		if err != nil {
			return err
		}
		v.list = append(v.list, e)
	}
	_, err := r.dec.Token() // The closing bracket.
	return err
}

func (r *jsonReader) object(v *value) error {
	v.kind = object
	for r.dec.More() {
		key, err := r.value()
		if err != nil {
			return err
		}
		val, err := r.value()
		if err != nil {
			return err
		}
		v.items = append(v.items, item{key: key.text, line: key.line, val: val})
	}
	_, err := r.dec.Token() // The closing brace.
	return err
}
