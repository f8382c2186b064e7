package shape

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var (
	limitTest  = regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w+`)
	limitRoom  = regexp.MustCompile("`(pkg/[a-z0-9/]+)`")
	limitConst = regexp.MustCompile("^`(pkg/[a-z0-9/]+)\\.(\\w+)`$")
)

// TestLimitsAreDocumented holds docs/limits.md against the code: each row's
// number is its constant's, and each test it names is there.
func TestLimitsAreDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, "docs", "limits.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests, consts := limitSources(t)
	rows := 0
	for line := range strings.Lines(string(text)) {
		for part := range strings.SplitSeq(line, " · ") {
			names := limitTest.FindAllString(part, -1)
			rooms := limitRoom.FindAllStringSubmatch(part, -1)
			for _, name := range names {
				found := false
				for _, room := range rooms {
					found = found || tests[room[1]+" "+name]
				}
				if !found {
					t.Errorf("docs/limits.md names %s, which is not in %v", name, rooms)
				}
			}
		}
		cells := strings.Split(line, " | ")
		if len(cells) != 6 || strings.HasPrefix(cells[1], "number") {
			continue
		}
		name := limitConst.FindStringSubmatch(cells[2])
		if name == nil {
			continue
		}
		rows++
		value, ok := consts[name[1]+" "+name[2]]
		if !ok {
			t.Errorf("docs/limits.md: %s has no constant %s", name[1], name[2])
			continue
		}
		if !says(cells[1], value) {
			t.Errorf("docs/limits.md: %q, but %s.%s is %d", cells[1], name[1], name[2], value)
		}
	}
	if rows < 40 {
		t.Errorf("only %d rows have a constant", rows)
	}
}

// limitSources are the tests and the integer constants of the module, each by
// folder and name.
func limitSources(t *testing.T) (tests map[string]bool, consts map[string]int64) {
	t.Helper()
	tests, consts = make(map[string]bool), make(map[string]int64)
	for _, s := range sources(t) {
		for _, decl := range s.ast.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if s.test {
					tests[s.dir+" "+d.Name.Name] = true
				}
			case *ast.GenDecl:
				if d.Tok == token.CONST && !s.test {
					addConsts(s.dir, d, consts)
				}
			}
		}
	}
	return tests, consts
}

func addConsts(dir string, d *ast.GenDecl, consts map[string]int64) {
	for _, spec := range d.Specs {
		v, ok := spec.(*ast.ValueSpec)
		if !ok || len(v.Names) != len(v.Values) {
			continue
		}
		for i, name := range v.Names {
			if value := evaluate(v.Values[i]); value != nil && value.Kind() == constant.Int {
				consts[dir+" "+name.Name], _ = constant.Int64Val(value)
			}
		}
	}
}

// evaluate is the value of an expression of literals and units of time; nil for
// another.
func evaluate(e ast.Expr) constant.Value {
	units := map[string]time.Duration{
		"Nanosecond": time.Nanosecond, "Millisecond": time.Millisecond, "Second": time.Second, "Minute": time.Minute, "Hour": time.Hour,
	}
	switch e := e.(type) {
	case *ast.BasicLit:
		return constant.MakeFromLiteral(e.Value, e.Kind, 0)
	case *ast.SelectorExpr:
		if unit, ok := units[e.Sel.Name]; ok {
			return constant.MakeInt64(int64(unit))
		}
	case *ast.BinaryExpr:
		x, y := evaluate(e.X), evaluate(e.Y)
		switch {
		case x == nil || y == nil:
			return nil
		case e.Op == token.SHL:
			n, _ := constant.Uint64Val(y)
			return constant.Shift(x, e.Op, uint(n))
		case e.Op == token.MUL:
			return constant.BinaryOp(x, e.Op, y)
		}
	}
	return nil
}

// says whether a cell has a value in it, as a number, bytes or a time.
func says(cell string, value int64) bool {
	forms := []string{fmt.Sprint(value)}
	if value >= 1000 {
		forms = append(forms, fmt.Sprintf("%d,%03d", value/1000, value%1000))
	}
	for unit, size := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "ms": int64(time.Millisecond), "s": int64(time.Second), "min": int64(time.Minute)} {
		if value%size == 0 {
			forms = append(forms, fmt.Sprintf("%d %s", value/size, unit))
		}
	}
	for _, form := range forms {
		if regexp.MustCompile(`(^|[^\d,])` + regexp.QuoteMeta(form) + `($|[^\d,])`).MatchString(cell) {
			return true
		}
	}
	return false
}
