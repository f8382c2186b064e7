package main

import (
	"fmt"
	"go/ast"
	"reflect"
	"regexp"
	"strings"
)

// key is one row of a table.
type key struct {
	path, kind, unset, status, meaning string
	ours                               bool
}

// walk collects the keys of a struct.
type walk struct {
	tree *tree
	keys []key
	stop map[string]bool // paths that are described elsewhere
}

// fields adds the keys of a struct; above is the status of the section that
// they stand in, when it has one.
func (w *walk) fields(in typeDecl, st *ast.StructType, path, above string) error {
	names := goNames(st)
	for _, f := range st.Fields.List {
		tag := tagOf(f)
		name := tag.Get("hcl")
		if name == "" {
			if len(f.Names) == 0 { // embedded
				if err := w.into(in, f.Type, path, above); err != nil {
					return err
				}
			}
			continue
		}
		at := strings.TrimPrefix(path+"."+name, ".")
		if w.stop[at] {
			continue
		}
		k := key{path: at, kind: w.kind(in, f.Type), ours: tag.Get("ours") != "", status: status(tag, above)}
		switch {
		case tag.Get("default") != "":
			k.unset = "`" + tag.Get("default") + "`"
		case tag.Get("unset") != "":
			k.unset = tag.Get("unset")
		}
		if f.Doc == nil {
			return fmt.Errorf("%s has no doc comment", at)
		}
		k.meaning = meaning(f.Doc.Text(), f.Names[0].Name, names)
		w.keys = append(w.keys, k)
		inner := above
		if k.status != honoured && above == "" {
			inner = strings.SplitN(k.status, ":", 2)[0] + " with `" + at + "`"
		}
		if err := w.into(in, f.Type, at, inner); err != nil {
			return err
		}
	}
	return nil
}

const honoured = "honoured"

func status(tag reflect.StructTag, above string) string {
	switch {
	case above != "":
		return above
	case tag.Get("refused") != "":
		return "**refused**: " + tag.Get("refused")
	case tag.Get("accepted") != "":
		return "accepted, no effect: " + tag.Get("accepted")
	}
	return honoured
}

// into adds the keys of a section, if the type is one.
func (w *walk) into(in typeDecl, e ast.Expr, path, above string) error {
	switch e := e.(type) {
	case *ast.StarExpr:
		return w.into(in, e.X, path, above)
	case *ast.ArrayType:
		if _, ok := e.Elt.(*ast.Ident); ok {
			if _, ours := w.tree.lookup(in, e.Elt); !ours {
				return nil
			}
		}
		return w.into(in, e.Elt, path+"[]", above)
	case *ast.MapType:
		return w.into(in, e.Value, path+`."…"`, above)
	case *ast.StructType:
		return w.fields(in, e, path, above)
	}
	found, ok := w.tree.lookup(in, e)
	if !ok {
		return nil
	}
	if st, ok := found.spec.Type.(*ast.StructType); ok {
		return w.fields(found, st, path, above)
	}
	return nil
}

// kind is the type in the words of the file.
func (w *walk) kind(in typeDecl, e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return w.kind(in, e.X)
	case *ast.ArrayType:
		return "list of " + plural[w.kind(in, e.Elt)]
	case *ast.MapType:
		return "sections with a name"
	case *ast.StructType:
		return "section"
	case *ast.SelectorExpr:
		if e.Sel.Name == "Duration" {
			return "duration"
		}
		if e.Sel.Name == "Raw" {
			return "text"
		}
	case *ast.Ident:
		switch e.Name {
		case "string":
			return "text"
		case "bool":
			return "true/false"
		case "int", "int64", "uint", "float64":
			return "number"
		}
	}
	return "section"
}

var plural = map[string]string{"text": "texts", "number": "numbers", "section": "sections", "duration": "durations"}

func tagOf(f *ast.Field) reflect.StructTag {
	if f.Tag == nil {
		return ""
	}
	return reflect.StructTag(strings.Trim(f.Tag.Value, "`"))
}

// goNames maps the names of fields, as comments use them, to keys.
func goNames(st *ast.StructType) map[string]string {
	names := make(map[string]string)
	for _, f := range st.Fields.List {
		if k := tagOf(f).Get("hcl"); k != "" && len(f.Names) == 1 {
			names[f.Names[0].Name] = k
		}
	}
	return names
}

var (
	camel = regexp.MustCompile(`\b[A-Z]\w*[a-z]\w*[A-Z]\w*\b`)
	verb  = regexp.MustCompile(`^(is|are) `)
)

// meaning is a doc comment as a sentence about the key: without the field's
// name in front, and with keys for the names of other fields.
func meaning(doc, field string, names map[string]string) string {
	text := strings.Join(strings.Fields(doc), " ")
	text = strings.TrimPrefix(text, field+" ")
	text = verb.ReplaceAllString(text, "")
	text = camel.ReplaceAllStringFunc(text, func(name string) string {
		if k, ok := names[name]; ok {
			return "`" + k + "`"
		}
		return name
	})
	if first, _, _ := strings.Cut(text, " "); strings.Contains(first, "_") {
		return text // a value, which is written so
	}
	return strings.ToUpper(text[:1]) + text[1:]
}
