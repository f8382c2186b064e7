package config

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Plugin is one section of plugins: `KeyManager "disk" { plugin_data { … } }`.
type Plugin struct {
	// Type is the kind of plugin: KeyManager, NodeAttestor, DataStore …
	Type string
	// Name is which one: a built-in's name, or any name for an external one.
	Name string
	// Enabled is the key enabled; default true.
	Enabled bool
	// Cmd is plugin_cmd, the program of an external plugin; empty: built in.
	Cmd string
	// Args is plugin_args, the arguments of Cmd.
	Args []string
	// Checksum is plugin_checksum, the SHA-256 of Cmd in hexadecimal.
	Checksum string
	// Data is plugin_data, for the plugin itself.
	Data Raw
	// DataFile is plugin_data_file: a file that holds Data.
	DataFile string

	file *File
	line int
}

// pluginBody is what may stand in a plugin's section.
type pluginBody struct {
	Enabled  *bool    `hcl:"enabled"`
	Cmd      string   `hcl:"plugin_cmd"`
	Args     []string `hcl:"plugin_args"`
	Checksum string   `hcl:"plugin_checksum"`
	Data     Raw      `hcl:"plugin_data"`
	DataFile string   `hcl:"plugin_data_file"`
}

// Decode fills the struct that into points to from plugin_data, or from the
// file that plugin_data_file names.
func (p Plugin) Decode(into any) error {
	if p.DataFile == "" {
		return p.Data.Decode(into)
	}
	if p.Data.IsSet() {
		return p.Errorf("plugin_data and plugin_data_file are both set; keep one")
	}
	f, err := Load(p.DataFile, false)
	if err != nil {
		return p.Errorf("plugin_data_file: %w", err)
	}
	return f.Decode(into)
}

// Errorf is an error about this plugin that begins with where it is configured.
func (p Plugin) Errorf(format string, args ...any) error {
	problem := &Problem{Line: p.line, Key: p.path(), Err: fmt.Errorf(format, args...)}
	if p.file != nil {
		problem.File = p.file.name
	}
	return problem
}

// Wrap makes of an error about this plugin one, or several, that say where it is
// configured; those that do already are left.
func (p Plugin) Wrap(err error) error {
	var problems []error
	for _, err := range flatten([]error{err}) {
		if _, ok := errors.AsType[*Problem](err); !ok {
			err = p.Errorf("%w", err)
		}
		problems = append(problems, err)
	}
	return Problems(problems...)
}

// DataErrorf is an error about a key of plugin_data, at its line.
func (p Plugin) DataErrorf(key, format string, args ...any) error {
	if p.DataFile != "" {
		return p.Errorf("%s: %s: %w", p.DataFile, key, fmt.Errorf(format, args...))
	}
	return p.file.Errorf(p.dataPath(key), format, args...)
}

// Unsupported is [Unsupported] for what [Plugin.Decode] has filled.
func (p Plugin) Unsupported(data any) ([]Notice, error) {
	return Unsupported(p.file, p.dataPath(""), data)
}

func (p Plugin) path() string { return "plugins." + p.Type + "." + p.Name }

func (p Plugin) dataPath(key string) string {
	return strings.TrimSuffix(join(p.path()+".plugin_data", key), ".")
}

// Plugins is the section plugins, in file order.
type Plugins []Plugin

// OfType returns the enabled plugins of one type, in file order.
func (ps Plugins) OfType(kind string) []Plugin {
	var found []Plugin
	for _, p := range ps {
		if p.Type == kind && p.Enabled {
			found = append(found, p)
		}
	}
	return found
}

// Check reports each enabled plugin that the program does not have: builtins
// maps a type to the names of its built-in plugins, and later are those of SPIRE
// that are refused by name. An external plugin (plugin_cmd) may have any name,
// but its type must be known.
func (ps Plugins) Check(builtins map[string][]string, later []Later) error {
	known := make(map[string][]string)
	for kind, names := range builtins {
		known[kind] = append(known[kind], names...)
	}
	for _, l := range later {
		known[l.Type] = append(known[l.Type], l.Name)
	}
	var problems []error
	for _, p := range ps {
		names, ok := known[p.Type]
		i := slices.IndexFunc(later, func(l Later) bool { return l.Type == p.Type && l.Name == p.Name })
		switch {
		case !p.Enabled:
		case !ok:
			types := slices.Sorted(maps.Keys(known))
			problems = append(problems, p.Errorf("unknown plugin type %q%s", p.Type, didYouMean(p.Type, types)))
		case p.Cmd != "": // any name will do
		case i >= 0:
			problems = append(problems, later[i].refuse(p))
		case !slices.Contains(names, p.Name):
			problems = append(problems, p.Errorf("there is no built-in %s %q%s", p.Type, p.Name, didYouMean(p.Name, names)))
		}
	}
	return Problems(problems...)
}

func (d *decoder) plugins(path string, v *value) Plugins {
	var all Plugins
	lines := make(map[[2]string]int)
	for _, kind := range d.named(path, v) {
		for _, it := range d.named(join(path, kind.key), kind.val) {
			id := [2]string{kind.key, it.key}
			at := join(join(path, kind.key), it.key)
			if line, ok := lines[id]; ok {
				d.problem(it.line, at, "plugin is configured twice; it is also on line %d", line)
				continue
			}
			lines[id] = it.line
			all = append(all, d.plugin(at, kind.key, it))
		}
	}
	return all
}

// named is the items of a section, or of a list of sections.
func (d *decoder) named(path string, v *value) []item {
	objects, ok := v.objects()
	if !ok {
		d.expected(v, path, "a section")
		return nil
	}
	var items []item
	for _, obj := range objects {
		items = append(items, obj.items...)
	}
	return items
}

func (d *decoder) plugin(path, kind string, it item) Plugin {
	var body pluginBody
	d.decode(path, it.val, reflect.ValueOf(&body).Elem())
	p := Plugin{
		Type: kind, Name: it.key, Enabled: body.Enabled == nil || *body.Enabled,
		Cmd: body.Cmd, Args: body.Args, Checksum: body.Checksum, Data: body.Data, DataFile: body.DataFile,
		file: d.file, line: it.line,
	}
	if p.Cmd == "" && (p.Checksum != "" || len(p.Args) > 0) {
		d.problem(it.line, path, "plugin_checksum and plugin_args need plugin_cmd")
	}
	return p
}
