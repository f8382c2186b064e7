package main

import (
	"cmp"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	module    = "github.com/credence-id/credence"
	directive = "//credence:plugin_data "
)

// tree is the parsed source of the packages below pkg/.
type tree struct {
	packages map[string]*source // by folder below the root, with slashes
	plugins  []plugin
}

// source is one package.
type source struct {
	types  map[string]typeDecl
	values map[string]ast.Expr // of constants and variables
}

// typeDecl is a type where it is declared; file says what its imports mean.
type typeDecl struct {
	spec *ast.TypeSpec
	dir  string
	file *ast.File
}

// plugin is a struct that a directive names.
type plugin struct {
	program, kind, name string
	data                typeDecl
}

func parse(root string) (*tree, error) {
	t := &tree{packages: make(map[string]*source)}
	fset := token.NewFileSet()
	err := filepath.WalkDir(filepath.Join(root, "pkg"), func(name string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(name))
		t.add(filepath.ToSlash(rel), file)
		return err
	})
	if err == nil && len(t.plugins) == 0 {
		err = errors.New("no struct has the directive " + directive)
	}
	slices.SortFunc(t.plugins, func(a, b plugin) int {
		return cmp.Or(cmp.Compare(b.program, a.program), cmp.Compare(a.kind, b.kind), cmp.Compare(a.name, b.name))
	})
	return t, err
}

func (t *tree) add(dir string, file *ast.File) {
	src := t.packages[dir]
	if src == nil {
		src = &source{types: make(map[string]typeDecl), values: make(map[string]ast.Expr)}
		t.packages[dir] = src
	}
	for _, d := range file.Decls {
		decl, ok := d.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range decl.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				at := typeDecl{spec: spec, dir: dir, file: file}
				src.types[spec.Name.Name] = at
				t.directives(decl.Doc, at)
			case *ast.ValueSpec:
				for i, name := range spec.Names {
					if i < len(spec.Values) {
						src.values[name.Name] = spec.Values[i]
					}
				}
			}
		}
	}
}

func (t *tree) directives(doc *ast.CommentGroup, at typeDecl) {
	if doc == nil {
		return
	}
	for _, c := range doc.List {
		if rest, ok := strings.CutPrefix(c.Text, directive); ok {
			if f := strings.Fields(rest); len(f) == 3 {
				t.plugins = append(t.plugins, plugin{program: f[0], kind: f[1], name: f[2], data: at})
			}
		}
	}
}

// lookup finds the type that an expression in a file names; ok is false for
// types of Go itself and of other modules.
func (t *tree) lookup(in typeDecl, e ast.Expr) (found typeDecl, ok bool) {
	switch e := e.(type) {
	case *ast.Ident:
		found, ok = t.packages[in.dir].types[e.Name]
	case *ast.SelectorExpr:
		pkg, isIdent := e.X.(*ast.Ident)
		if !isIdent {
			return typeDecl{}, false
		}
		for _, imp := range in.file.Imports {
			where, _ := strconv.Unquote(imp.Path.Value)
			dir, ours := strings.CutPrefix(where, module+"/")
			if ours && path.Base(where) == pkg.Name && t.packages[dir] != nil {
				found, ok = t.packages[dir].types[e.Sel.Name]
			}
		}
	}
	return found, ok
}

// text is the value of a constant expression of strings.
func (s *source) text(e ast.Expr) (string, error) {
	switch e := e.(type) {
	case *ast.BasicLit:
		return strconv.Unquote(e.Value)
	case *ast.Ident:
		if v, ok := s.values[e.Name]; ok {
			return s.text(v)
		}
	case *ast.BinaryExpr:
		left, err := s.text(e.X)
		if err != nil || e.Op != token.ADD {
			return "", err
		}
		right, err := s.text(e.Y)
		return left + right, err
	}
	return "", fmt.Errorf("%T is not a text", e)
}

// later reads the variable later of a package: the fields of each element.
func (t *tree) later(dir string) ([]map[string]string, error) {
	src := t.packages[dir]
	all, ok := src.values["later"].(*ast.CompositeLit)
	if !ok {
		return nil, fmt.Errorf("%s has no list later", dir)
	}
	var rows []map[string]string
	for _, e := range all.Elts {
		row := make(map[string]string)
		for _, kv := range e.(*ast.CompositeLit).Elts {
			field := kv.(*ast.KeyValueExpr)
			text, err := src.text(field.Value)
			if err != nil {
				return nil, fmt.Errorf("%s: later: %w", dir, err)
			}
			row[field.Key.(*ast.Ident).Name] = text
		}
		rows = append(rows, row)
	}
	return rows, nil
}
