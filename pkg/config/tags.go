package config

import "reflect"

// Notice is a key that is set, accepted, and has no effect.
type Notice struct {
	// Key is its path, such as "server.experimental.event_timeout".
	Key string
	// Reason says why there is nothing for it to do.
	Reason string
}

// SetDefaults fills in each field that is zero with what its tag default says,
// in the struct that into points to and in the structs in it:
//
//	BindPort int `hcl:"bind_port" default:"8081"`
//
// A default that cannot be read into its field is a mistake in the program, and
// panics.
func SetDefaults(into any) {
	d := decoder{file: &File{name: "default"}}
	d.defaults("", reflect.ValueOf(into).Elem())
	if len(d.problems) > 0 {
		panic(d.problems[0])
	}
}

func (d *decoder) defaults(path string, to reflect.Value) {
	eachField(to, func(key string, tag reflect.StructTag, field reflect.Value) {
		at := join(path, key)
		if given := tag.Get("default"); given != "" && field.IsZero() {
			d.decode(at, &value{kind: text, text: given}, field)
		}
		switch {
		case isSection(field.Type()):
			d.defaults(at, field)
		case field.Kind() == reflect.Pointer && isSection(field.Type().Elem()) && !field.IsNil():
			d.defaults(at, field.Elem())
		}
	})
}

// Unsupported looks for keys that are set and that the program knows but does
// not honour, by the tags of the fields of from, a struct or a pointer to one:
//
//	EventTimeout string `hcl:"event_timeout" accepted:"there is no table of events"`
//	NamedPipe    string `hcl:"named_pipe_name" refused:"use socket_path"`
//
// A key is set when its value is not the zero value (for a pointer: when it is
// there). Of one that is refused, problem has key, line and reason; the others
// are notices. path is where from stands in the file; the file may be nil.
func Unsupported(f *File, path string, from any) (notices []Notice, problem error) {
	v := reflect.ValueOf(from)
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	var problems []error
	unsupported(path, v, func(key, refused, accepted string) {
		if refused != "" {
			problems = append(problems, f.Errorf(key, "not supported: %s", refused))
		} else {
			notices = append(notices, Notice{Key: key, Reason: accepted})
		}
	})
	return notices, Problems(problems...)
}

func unsupported(path string, v reflect.Value, report func(key, refused, accepted string)) {
	eachField(v, func(key string, tag reflect.StructTag, field reflect.Value) {
		at := join(path, key)
		refused, accepted := tag.Get("refused"), tag.Get("accepted")
		switch {
		case refused == "" && accepted == "":
			if isSection(field.Type()) {
				unsupported(at, field, report)
			} else if field.Kind() == reflect.Pointer && isSection(field.Type().Elem()) && !field.IsNil() {
				unsupported(at, field.Elem(), report)
			}
		case isSet(field):
			report(at, refused, accepted)
		}
	})
}

// eachField calls do with each field that is a key of the file, those of
// embedded structs too.
func eachField(v reflect.Value, do func(key string, tag reflect.StructTag, field reflect.Value)) {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if key := field.Tag.Get("hcl"); key != "" {
			do(key, field.Tag, v.Field(i))
		} else if field.Anonymous && field.Type.Kind() == reflect.Struct {
			eachField(v.Field(i), do)
		}
	}
}

// isSection says whether a type is a section whose keys are its fields.
func isSection(t reflect.Type) bool { return t.Kind() == reflect.Struct && t != rawType }

func isSet(v reflect.Value) bool {
	if v.Kind() == reflect.Slice || v.Kind() == reflect.Map {
		return v.Len() > 0
	}
	return !v.IsZero()
}
