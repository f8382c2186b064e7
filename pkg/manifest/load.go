package manifest

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// Declared is an entry that a file declares.
type Declared struct {
	// Entry as it is to be. Its ID is never empty: see [Set.ID].
	Entry *types.Entry
	// At is where it is declared, as file:line.
	At string
}

// Load reads what the files at paths declare for the set. A path is a file, a
// folder, of which all files that end in .yaml, .yml or .json are read, but none
// of folders in it, or a dash for stdin. Each has to have a list of entries,
// which may be empty. All that is wrong is in the error, each
// with file and line: what does not parse, unknown fields, and what is declared
// twice.
func Load(set Set, stdin io.Reader, paths ...string) ([]Declared, error) {
	var out []Declared
	var problems []error
	for _, path := range paths {
		files, err := filesAt(path)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			declared, err := loadFile(set, stdin, file)
			out = append(out, declared...)
			problems = append(problems, err)
		}
	}
	problems = append(problems, twice(out)...)
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return out, nil
}

// filesAt are the files that a path names.
func filesAt(path string) ([]string, error) {
	if path == "-" {
		return []string{path}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	in, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, f := range in {
		switch filepath.Ext(f.Name()) {
		case ".yaml", ".yml", ".json":
			if f.IsDir() || strings.HasPrefix(f.Name(), ".") {
				continue
			}
			file := filepath.Join(path, f.Name())
			info, err := os.Stat(file) // What a link leads to.
			if err != nil {
				return nil, err
			}
			if !info.Mode().IsRegular() { // A pipe would be waited for.
				return nil, fmt.Errorf("%s: it is not a regular file", file)
			}
			files = append(files, file)
		}
	}
	if len(files) == 0 { // An empty list would be a reason to delete everything.
		return nil, fmt.Errorf("%s: there is no file that ends in .yaml, .yml or .json", path)
	}
	return files, nil
}

func loadFile(set Set, stdin io.Reader, file string) ([]Declared, error) {
	read := func() ([]byte, error) { return os.ReadFile(file) }
	if file == "-" {
		read = func() ([]byte, error) { return io.ReadAll(stdin) }
	}
	text, err := read()
	if err != nil {
		return nil, err
	}
	records, err := parse(file, text)
	if err != nil {
		return nil, err
	}
	out := make([]Declared, 0, len(records))
	var problems []error
	for _, r := range records {
		e, err := r.record.entry()
		if err == nil && len(e.GetSelectors()) == 0 {
			err = errors.New("at least one selector is required")
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", r.at, err))
			continue
		}
		// What a server sets is not for files to say.
		e.RevisionNumber, e.CreatedAt = 0, 0
		e.Id = cmp.Or(e.GetId(), set.ID(e))
		out = append(out, Declared{Entry: e, At: r.at.String()})
	}
	return out, errors.Join(problems...)
}

// twice are the entries that are there twice: by ID, or because a server would
// take one for the other.
func twice(all []Declared) []error {
	var problems []error
	ids, keys := make(map[string]string, len(all)), make(map[string]string, len(all))
	for _, d := range all {
		key := keyOf(d.Entry)
		if at, ok := keys[key]; ok {
			problems = append(problems, fmt.Errorf("%s: an entry with the same parent, SPIFFE ID and selectors is declared at %s", d.At, at))
			continue
		}
		if at, ok := ids[d.Entry.GetId()]; ok {
			problems = append(problems, fmt.Errorf("%s: entry %s is also declared at %s", d.At, d.Entry.GetId(), at))
			continue
		}
		ids[d.Entry.GetId()], keys[key] = d.At, d.At
	}
	return problems
}

// keyOf is what makes two entries similar for a server: parent, SPIFFE ID and
// the set of selectors.
func keyOf(e *types.Entry) string {
	var b strings.Builder
	for _, part := range slices.Concat([]string{idText(e.GetParentId()), idText(e.GetSpiffeId())}, selectorTexts(e)) {
		fmt.Fprintf(&b, "%d:%s", len(part), part)
	}
	return b.String()
}

func idText(id *types.SPIFFEID) string { return "spiffe://" + id.GetTrustDomain() + id.GetPath() }

// selectorTexts are the selectors of an entry, in order, each once.
func selectorTexts(e *types.Entry) []string {
	out := make([]string, 0, len(e.GetSelectors()))
	for _, s := range e.GetSelectors() {
		out = append(out, s.GetType()+":"+s.GetValue())
	}
	slices.Sort(out)
	return slices.Compact(out)
}
