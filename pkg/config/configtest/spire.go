package configtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// defaultSource is where SPIRE's source is looked for when SPIRE_SRC does not
// say where it is.
const defaultSource = "/tmp/spire/src"

// Source is the folder of SPIRE's source. It skips the test when there is none.
func Source(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("SPIRE_SRC")
	if dir == "" {
		dir = defaultSource
	}
	if _, err := os.Stat(filepath.Join(dir, "cmd", "spire-server")); err != nil {
		t.Skipf("no source of SPIRE: set SPIRE_SRC to its folder: %v", err)
	}
	return dir
}

// SPIREKeys are the keys, without their sections, that the structs in the Go
// files of the folders (or in the files) below SPIRE's source are tagged with.
func SPIREKeys(t testing.TB, below ...string) []string {
	t.Helper()
	var keys []string
	for _, name := range below {
		path := filepath.Join(Source(t), filepath.FromSlash(name))
		files := []string{path}
		if filepath.Ext(path) != ".go" {
			var err error
			if files, err = filepath.Glob(filepath.Join(path, "*.go")); err != nil {
				t.Fatal(err)
			}
		}
		for _, file := range files {
			if !strings.HasSuffix(file, "_test.go") {
				keys = append(keys, tagsIn(t, file)...)
			}
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

func tagsIn(t testing.TB, file string) (keys []string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(parsed, func(n ast.Node) bool {
		field, ok := n.(*ast.Field)
		if !ok || field.Tag == nil {
			return true
		}
		key, _, _ := strings.Cut(reflect.StructTag(strings.Trim(field.Tag.Value, "`")).Get("hcl"), ",")
		if key != "" && key != "-" {
			keys = append(keys, key)
		}
		return true
	})
	return keys
}

// Plugin finds, among the keys of plugins by "type name", the one whose source
// SPIRE has in the given folder: these are called as the plugins are, without _
// and -. The name is empty when there is none.
func Plugin(plugins map[string][]string, kind, folder string) (name string, keys []string) {
	for name, keys := range plugins {
		bare := strings.NewReplacer("_", "", "-", "").Replace(strings.TrimPrefix(name, kind+" "))
		if strings.HasPrefix(name, kind+" ") && strings.HasPrefix(bare, folder) {
			return name, keys
		}
	}
	return "", nil
}
