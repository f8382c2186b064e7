package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
)

// Limits of a configuration file.
const (
	maxSize  = 4 << 20 // bytes
	maxDepth = 500     // braces and brackets open at the same time
)

// File is a parsed configuration file, not yet decoded.
type File struct {
	name string
	root *value
	// overrides has the keys whose values come from elsewhere, in lower case.
	overrides map[string]string
}

// Load reads and parses the file at path. With expandEnv, ${VAR} and $VAR are
// replaced by the process's environment before parsing, anywhere in the file.
func Load(path string, expandEnv bool) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading configuration: %w", err)
	}
	defer f.Close() //nolint:errcheck // Only read from.
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("reading configuration: %w", err)
	}
	if expandEnv {
		data = []byte(expand(string(data), os.Getenv))
	}
	return Parse(path, data)
}

// Parse parses the bytes of a file; name is what errors call it. A file whose
// first character is { is JSON, anything else HCL.
func Parse(name string, data []byte) (*File, error) {
	if len(data) > maxSize {
		return nil, fmt.Errorf("%s: file is larger than %d bytes", name, maxSize)
	}
	data, err := withoutBOM(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := checkDepth(data); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	parse := parseHCL
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		parse = parseJSON
	}
	root, err := parse(data)
	if err != nil {
		return nil, located(name, err)
	}
	return &File{name: name, root: root}, nil
}

// Decode fills the struct that into points to. The fields of keys that are not
// in the file keep what they had. All problems are in the one error returned,
// one a line.
func (f *File) Decode(into any) error {
	return decodeInto(f, "", f.root, into)
}

func decodeInto(file *File, path string, v *value, into any) error {
	target := reflect.ValueOf(into)
	if target.Kind() != reflect.Pointer || target.IsNil() || target.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("decoding configuration: target is %T, not a pointer to a struct", into)
	}
	d := decoder{file: file}
	d.decode(path, v, target.Elem())
	return Problems(d.problems...)
}

// expand replaces ${VAR} and $VAR; an unset variable is empty and $$ is a
// dollar sign, as in SPIRE.
func expand(text string, getenv func(string) string) string {
	return os.Expand(text, func(name string) string {
		if name == "$" {
			return "$"
		}
		return getenv(name)
	})
}

// checkDepth keeps the recursive parsers away from inputs that are nothing but
// nesting. It may count braces in texts, which is harmless at this limit.
func checkDepth(data []byte) error {
	depth := 0
	for _, c := range data {
		switch c {
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		if depth > maxDepth {
			return fmt.Errorf("sections are nested deeper than %d", maxDepth)
		}
	}
	return nil
}

// withoutBOM takes off the byte order mark that some editors write in front of
// UTF-8. The parsers read no other encoding.
func withoutBOM(data []byte) ([]byte, error) {
	for _, mark := range []string{"\xfe\xff", "\xff\xfe"} {
		if bytes.HasPrefix(data, []byte(mark)) {
			return nil, errors.New("file is UTF-16: save it as UTF-8")
		}
	}
	return bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")), nil
}

// lineError is a problem at a line of the file, before its name is known.
type lineError struct {
	line int
	msg  string
}

func (e *lineError) Error() string { return e.msg }

func located(name string, err error) error {
	if at, ok := errors.AsType[*lineError](err); ok {
		return fmt.Errorf("%s:%d: %s", name, at.line, at.msg)
	}
	return fmt.Errorf("%s: %w", name, err)
}
