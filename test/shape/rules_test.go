package shape

import (
	"go/ast"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	maxFileLines     = 600
	maxFunctionLines = 100
	minDocLines      = 5
	maxDocLines      = 25
)

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	t.Parallel()
	for dir, files := range packages(t) {
		var docs []source
		onlyTests := !slices.ContainsFunc(files, func(s source) bool { return !s.test })
		for _, s := range files {
			if s.ast.Doc != nil && s.test == onlyTests {
				docs = append(docs, s)
			}
		}
		if len(docs) != 1 {
			t.Errorf("%s: %d files have a package comment, want one (doc.go)", dir, len(docs))
			continue
		}
		doc := docs[0]
		text := strings.TrimSpace(doc.ast.Doc.Text())
		begin := "Package " + doc.pkg + " "
		if doc.pkg == "main" {
			begin = "Command "
		}
		if !strings.HasPrefix(text, begin) {
			t.Errorf("%s: package comment begins %q, want %q", doc.path, text[:min(len(text), len(begin))], begin)
		}
		if n := strings.Count(text, "\n") + 1; n < minDocLines || n > maxDocLines {
			t.Errorf("%s: package comment has %d lines, want %d to %d", doc.path, n, minDocLines, maxDocLines)
		}
	}
}

func TestPackageNamesAreUnique(t *testing.T) {
	t.Parallel()
	dirs := make(map[string][]string)
	for dir, files := range packages(t) {
		names := make(map[string]bool)
		for _, s := range files {
			names[strings.TrimSuffix(s.pkg, "_test")] = true
		}
		for name := range names {
			dirs[name] = append(dirs[name], dir)
		}
	}
	delete(dirs, "main")
	for name, in := range dirs {
		if len(in) > 1 {
			slices.Sort(in)
			t.Errorf("package name %s is used by %s", name, strings.Join(in, " and "))
		}
	}
}

func TestFilesAndFunctionsAreShort(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		if s.test || s.generated {
			continue
		}
		if s.lines > maxFileLines {
			t.Errorf("%s has %d lines, want at most %d", s.path, s.lines, maxFileLines)
		}
		for _, decl := range s.ast.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := s.line(f.End()) - s.line(f.Pos()) + 1; n > maxFunctionLines {
				t.Errorf("%s:%d: function %s has %d lines, want at most %d", s.path, s.line(f.Pos()), f.Name.Name, n, maxFunctionLines)
			}
		}
	}
}

// TestContextsComeFromMain: only main and tests make a context out of nothing.
func TestContextsComeFromMain(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		if s.test || s.pkg == "main" || under(s.dir, "test") {
			continue
		}
		ast.Inspect(s.ast, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			pkg, ok := sel.X.(*ast.Ident)
			if ok && pkg.Name == "context" && (sel.Sel.Name == "Background" || sel.Sel.Name == "TODO") {
				t.Errorf("%s:%d: context.%s; take ctx from the caller", s.path, s.line(sel.Pos()), sel.Sel.Name)
			}
			return true
		})
	}
}

// TestNobodyStartsAndForgets: a goroutine is started by an errgroup or a
// WaitGroup, so that somebody waits for it.
func TestNobodyStartsAndForgets(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		if s.test || s.generated {
			continue
		}
		ast.Inspect(s.ast, func(n ast.Node) bool {
			if g, ok := n.(*ast.GoStmt); ok {
				t.Errorf("%s:%d: bare go statement; use errgroup or WaitGroup.Go", s.path, s.line(g.Pos()))
			}
			return true
		})
	}
}

var (
	todo         = regexp.MustCompile(`(^|[^.\w])(TODO|FIXME|XXX)\b`) // Not context.TODO.
	numberedTodo = regexp.MustCompile(`(^|[^.\w])TODO\(#\d+\): `)
)

func TestTodosNameAnIssue(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		if s.generated {
			continue
		}
		for _, group := range s.ast.Comments {
			for _, c := range group.List {
				if len(todo.FindAllString(c.Text, -1)) != len(numberedTodo.FindAllString(c.Text, -1)) {
					t.Errorf("%s:%d: a TODO names an issue, as in TODO(#123): …", s.path, s.line(c.Pos()))
				}
			}
		}
	}
}

// TestRoomsAreAlive: each room of the picture has been found, so that a typo in
// a pattern cannot switch a rule off.
func TestRoomsAreAlive(t *testing.T) {
	t.Parallel()
	dirs := slices.Collect(maps.Keys(packages(t)))
	for _, want := range []string{"cmd/server", "cmd/agent", "pkg/server", "pkg/agent", "pkg/store", "test/shape"} {
		if !slices.Contains(dirs, want) {
			t.Errorf("there is no package in %s", want)
		}
	}
}
