package config

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/hcl/ast"
	"github.com/hashicorp/hcl/hcl/parser"
	"github.com/hashicorp/hcl/hcl/token"
)

// parseHCL reads HCL version 1. `x "a" "b" { … }` is the same as
// `x { a { b { … } } }`.
func parseHCL(data []byte) (root *value, err error) {
	// The HCL parser panics on some malformed tokens; to us that is a syntax
	// error like any other.
	defer func() {
		if p := recover(); p != nil {
			root, err = nil, errors.New("syntax error")
		}
	}()
	file, err := parser.Parse(data)
	if err != nil {
		return nil, syntaxError(err)
	}
	items, ok := file.Node.(*ast.ObjectList)
	if !ok {
		return nil, errors.New("file is not a list of sections")
	}
	return fromObjectList(items, 1)
}

func syntaxError(err error) error {
	at, ok := errors.AsType[*parser.PosError](err)
	if !ok {
		return setTwice(err)
	}
	msg := at.Err.Error()
	switch { // Two messages repeat what stands there, which may be a secret.
	case strings.HasPrefix(msg, "Unknown token"):
		msg = `expected a value: text in double quotes, a number, true, false, [ or {`
	case strings.HasPrefix(msg, "key '"):
		msg = "expected = or { after a key"
	}
	return &lineError{line: at.Pos.Line, msg: msg}
}

// twice is what the parser says of a key that is set twice; it has no other
// error that tells the position in its text.
var twice = regexp.MustCompile(`^The argument (".*") at ([0-9]+):[0-9]+ was already set`)

func setTwice(err error) error {
	m := twice.FindStringSubmatch(err.Error())
	if m == nil {
		return err
	}
	line, lineErr := strconv.Atoi(m[2])
	key, keyErr := strconv.Unquote(m[1])
	if lineErr != nil || keyErr != nil {
		return err
	}
	return &lineError{line: line, msg: strings.Trim(key, `"`) + ": key is set twice"}
}

func fromObjectList(l *ast.ObjectList, line int) (*value, error) {
	obj := &value{kind: object, line: line}
	for _, it := range l.Items {
		val, err := fromNode(it.Val)
		if err != nil {
			return nil, err
		}
		// The labels after the first key are sections around the value.
		for i := len(it.Keys) - 1; i >= 0; i-- {
			key, err := fromToken(it.Keys[i].Token)
			if err != nil {
				return nil, err
			}
			wrapped := item{key: key.text, line: key.line, val: val}
			if i == 0 {
				obj.items = append(obj.items, wrapped)
				break
			}
			val = &value{kind: object, line: key.line, items: []item{wrapped}}
		}
	}
	return obj, nil
}

func fromNode(n ast.Node) (*value, error) {
	switch n := n.(type) {
	case *ast.ObjectType:
		return fromObjectList(n.List, n.Lbrace.Line)
	case *ast.ListType:
		v := &value{kind: list, line: n.Lbrack.Line}
		for _, e := range n.List {
			val, err := fromNode(e)
			if err != nil {
				return nil, err
			}
			v.list = append(v.list, val)
		}
		return v, nil
	case *ast.LiteralType:
		return fromToken(n.Token)
	default:
		return nil, &lineError{line: n.Pos().Line, msg: fmt.Sprintf("unexpected %T", n)}
	}
}

func fromToken(t token.Token) (*value, error) {
	v := &value{line: t.Pos.Line, text: t.Text}
	switch t.Type {
	case token.NUMBER, token.FLOAT:
		v.kind = number
	case token.BOOL:
		v.kind = boolean
	case token.IDENT:
		v.kind = text
	case token.STRING, token.HEREDOC:
		v.kind = text
		var ok bool
		if v.text, ok = unquote(t); !ok {
			return nil, &lineError{line: v.line, msg: "text is not well quoted"}
		}
	default:
		return nil, &lineError{line: v.line, msg: "expected a value"}
	}
	return v, nil
}

// unquote is the text of a token; ok is false where token.Value would panic.
func unquote(t token.Token) (s string, ok bool) {
	defer func() {
		if recover() != nil {
			s, ok = "", false
		}
	}()
	s, ok = t.Value().(string)
	return s, ok
}
