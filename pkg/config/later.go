package config

import (
	"slices"
	"strings"
)

// Later is a built-in plugin of SPIRE that this program does not have (yet). It
// is refused by its name, and what stands in its section is still checked, so
// that a file can be made right before it is moved back or forth.
type Later struct {
	// Type and Name are as in the file: NodeAttestor, k8s_psat.
	Type, Name string
	// Reason says why it is refused and what to use instead.
	Reason string
	// Keys are the keys of its plugin_data, with those of a section in braces
	// after it; * is any key: `region tags{*} clusters{*{audience}}`.
	Keys string
}

// refuse says that the program does not have the plugin, and which keys of its
// plugin_data nobody has.
func (l Later) refuse(p Plugin) error {
	problems := []error{p.Errorf("not supported: %s", l.Reason)}
	if p.Data.IsSet() {
		d := decoder{file: p.file}
		schema, _ := parseSchema(l.Keys)
		d.known(p.Data.path, p.Data.val, schema)
		problems = append(problems, d.problems...)
	}
	return Problems(problems...)
}

// schema is the keys of a section; nil below a key that is none.
type schema map[string]schema

// parseSchema reads the text of Later.Keys up to a closing brace or its end,
// and returns what follows.
func parseSchema(text string) (schema, string) {
	s := make(schema)
	for {
		text = strings.TrimLeft(text, " \n\t")
		if text == "" || text[0] == '}' {
			return s, text
		}
		end := strings.IndexAny(text, " \n\t{}")
		if end < 0 {
			end = len(text)
		}
		key := text[:end]
		text = text[end:]
		s[key] = nil
		if strings.HasPrefix(text, "{") {
			s[key], text = parseSchema(text[1:])
			text = strings.TrimPrefix(text, "}")
		}
	}
}

// known reports the keys of a section that are not in its schema.
func (d *decoder) known(path string, v *value, s schema) {
	objects, ok := v.objects()
	if !ok {
		d.expected(v, path, "a section")
		return
	}
	for _, obj := range objects {
		for _, it := range obj.items {
			d.knownItem(path, it, s)
		}
	}
}

func (d *decoder) knownItem(path string, it item, s schema) {
	at := join(path, it.key)
	inner, wildcard := s["*"]
	if !wildcard {
		var names []string
		for name := range s {
			names = append(names, name)
		}
		slices.Sort(names)
		i := slices.IndexFunc(names, func(name string) bool { return strings.EqualFold(name, it.key) })
		if i < 0 {
			d.problem(it.line, at, "unknown key%s", didYouMean(it.key, names))
			return
		}
		inner = s[names[i]]
	}
	if inner != nil {
		d.known(at, it.val, inner)
	}
}
