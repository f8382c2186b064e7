package agentpath

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/template"
	"text/template/parse"

	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MaxPath bounds what a template may write, in bytes.
const MaxPath = 1024

// Template makes the paths of the agents of one method. It may be used
// concurrently.
type Template struct {
	method string
	tmpl   *template.Template
}

// Parse reads a template for a method such as "x509pop". The path it makes has
// to begin with /<method>/, written out or as {{ .PluginName }}: agents of one
// method can then never have the name of another's.
//
// paths are the values that are paths by themselves and may have slashes, when
// they are written as they are.
func Parse(method, text string, paths ...string) (*Template, error) {
	guards := template.FuncMap{guardSegment: segment, guardPath: wholePath}
	tmpl, err := template.New("agent-path").Option("missingkey=error").Funcs(functions()).Funcs(guards).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%w", err)
	}
	root := tmpl.Lookup("agent-path")
	if root == nil || root.Tree == nil {
		return nil, errors.New("the template is empty")
	}
	if err := checkBegin(method, root.Root); err != nil {
		return nil, err
	}
	for _, t := range tmpl.Templates() {
		if t.Tree == nil {
			continue
		}
		if err := (guard{paths: paths}).list(t.Root); err != nil {
			return nil, err
		}
	}
	return &Template{method: method, tmpl: tmpl}, nil
}

// checkBegin refuses a template whose written begin is not the method's.
func checkBegin(method string, root *parse.ListNode) error {
	want := "/" + method + "/"
	begin, open := literal(method, root)
	switch {
	case strings.HasPrefix(begin, want), open && strings.HasPrefix(want, begin):
		return nil
	}
	return fmt.Errorf("the path begins with %q and has to begin with %q, so that an agent of this method is never taken for another's; write %s{{ … }}", begin, want, want)
}

// literal is the text a template begins with, the method's name filled in, and
// whether something follows that only an agent's values decide.
func literal(method string, root *parse.ListNode) (text string, open bool) {
	for _, n := range root.Nodes {
		switch n := n.(type) {
		case *parse.TextNode:
			text += string(n.Text)
		case *parse.CommentNode:
		case *parse.ActionNode:
			if n.Pipe.String() != ".PluginName" {
				return text, true
			}
			text += method
		default:
			return text, true
		}
	}
	return text, false
}

// Path fills in the values of one agent: the result begins with /<method>/ and
// is valid in a SPIFFE ID. It returns node.ErrRefused (wrapped) when a value
// is not there or is none for a path.
func (t *Template) Path(values any) (string, error) {
	out := new(limited)
	if err := t.tmpl.Execute(out, values); err != nil {
		return "", fmt.Errorf("%w: agent_path_template: %w", node.ErrRefused, err)
	}
	path := out.String()
	if err := spiffeid.ValidatePath(path); err != nil {
		return "", fmt.Errorf("%w: agent_path_template: %w", node.ErrRefused, err)
	}
	if want := "/" + t.method + "/"; !strings.HasPrefix(path, want) {
		return "", fmt.Errorf("%w: agent_path_template: the path does not begin with %s", node.ErrRefused, want)
	}
	return path, nil
}

// Check returns an error when the template names a field that values of this
// type do not have: no agent would ever have a path then. What depends on the
// values themselves is for [Template.Path] to say.
func (t *Template) Check(values any) error {
	tmpl, err := t.tmpl.Clone()
	if err != nil {
		return fmt.Errorf("%w", err)
	}
	pass := func(v any) any { return v }
	err = tmpl.Funcs(template.FuncMap{guardSegment: pass, guardPath: pass}).Execute(io.Discard, values)
	if err != nil && strings.Contains(err.Error(), "can't evaluate field") { // text/template has no type for it
		return fmt.Errorf("%w", err)
	}
	return nil
}

// limited is a buffer of at most MaxPath bytes.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > MaxPath {
		return 0, fmt.Errorf("the path is longer than %d bytes", MaxPath)
	}
	return l.Buffer.Write(p)
}

// The functions that guard adds to a template. One that calls them itself is
// checked twice.
const (
	guardSegment = "_segment"
	guardPath    = "_path"
)

// segment passes on what is a part of one path segment.
func segment(v any) (string, error) {
	text := fmt.Sprint(v)
	if err := spiffeid.ValidatePathSegment(text); err != nil {
		return "", fmt.Errorf("a value is not a part of a path: %w", err)
	}
	return text, nil
}

// wholePath passes on what is one or more path segments.
func wholePath(v any) (string, error) {
	text := fmt.Sprint(v)
	for part := range strings.SplitSeq(text, "/") {
		if err := spiffeid.ValidatePathSegment(part); err != nil {
			return "", fmt.Errorf("a value is not a path: %w", err)
		}
	}
	return text, nil
}

// guard puts a check behind every pipeline whose value is written.
type guard struct{ paths []string }

func (g guard) list(l *parse.ListNode) error {
	if l == nil {
		return nil
	}
	for _, n := range l.Nodes {
		if err := g.node(n); err != nil {
			return err
		}
	}
	return nil
}

func (g guard) node(n parse.Node) error {
	switch n := n.(type) {
	case *parse.ActionNode:
		g.action(n)
	case *parse.IfNode:
		return g.branch(&n.BranchNode)
	case *parse.RangeNode:
		return g.branch(&n.BranchNode)
	case *parse.WithNode:
		return g.branch(&n.BranchNode)
	case *parse.TextNode:
		return checkText(string(n.Text))
	case *parse.ListNode:
		return g.list(n)
	}
	return nil // the rest writes nothing, or what is guarded where it is defined
}

func (g guard) branch(b *parse.BranchNode) error {
	return errors.Join(g.list(b.List), g.list(b.ElseList))
}

func (g guard) action(n *parse.ActionNode) {
	if len(n.Pipe.Decl) > 0 {
		return // sets a variable
	}
	name := guardSegment
	if path, ok := strings.CutPrefix(n.Pipe.String(), "."); ok && slices.Contains(g.paths, path) {
		name = guardPath
	}
	n.Pipe.Cmds = append(n.Pipe.Cmds, &parse.CommandNode{
		NodeType: parse.NodeCommand, Pos: n.Pos,
		Args: []parse.Node{parse.NewIdentifier(name).SetTree(nil).SetPos(n.Pos)},
	})
}

// checkText refuses what an operator wrote and no path can have.
func checkText(text string) error {
	for part := range strings.SplitSeq(text, "/") {
		switch part {
		case "", ".", "..":
			continue // next to a value it may be a part of a segment
		}
		if err := spiffeid.ValidatePathSegment(part); err != nil {
			return fmt.Errorf("the text %q: %w", text, err)
		}
	}
	return nil
}
