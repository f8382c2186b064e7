package shape

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	securityTest = regexp.MustCompile(`\b(?:Test|Fuzz)S\d\d_\w+`)
	securityRoom = regexp.MustCompile("`((?:pkg|test)/[a-z0-9/]+)`")
)

// TestSecurityTableIsComplete holds the table of docs/security.md against the
// tests whose names begin with the number of a property.
func TestSecurityTableIsComplete(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	promised := make(map[string]bool) // folder and name
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "| S") {
			continue
		}
		for part := range strings.SplitSeq(line, " · ") {
			room := securityRoom.FindStringSubmatch(part)
			for _, name := range securityTest.FindAllString(part, -1) {
				if room == nil {
					t.Errorf("docs/security.md does not say which room has %s", name)
					continue
				}
				promised[room[1]+" "+name] = true
			}
		}
	}
	for _, s := range sources(t) {
		for _, decl := range s.ast.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || !s.test || !securityTest.MatchString(f.Name.Name) {
				continue
			}
			key := s.dir + " " + f.Name.Name
			if !promised[key] {
				t.Errorf("docs/security.md does not have `%s` %s", s.dir, f.Name.Name)
			}
			delete(promised, key)
		}
	}
	for key := range promised {
		t.Errorf("docs/security.md has %s, which is not there", key)
	}
}
