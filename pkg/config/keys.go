package config

import (
	"reflect"
	"slices"
	"strings"
)

// Keys are the paths of the keys that a struct knows, such as
// "server.ca_subject.country", in the order of its fields. The name of a section
// that has one is "*".
func Keys(of any) []string {
	var keys []string
	t := reflect.TypeOf(of)
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	keysOf("", t, &keys)
	return keys
}

func keysOf(path string, t reflect.Type, keys *[]string) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		if t != pluginsType {
			keysOf(path, t.Elem(), keys)
		}
		return
	case reflect.Map:
		keysOf(join(path, "*"), t.Elem(), keys)
		return
	case reflect.Struct:
	default:
		return
	}
	if !isSection(t) {
		return
	}
	for i := range t.NumField() {
		field := t.Field(i)
		if key := field.Tag.Get("hcl"); key != "" {
			*keys = append(*keys, join(path, key))
			keysOf(join(path, key), field.Type, keys)
		} else if field.Anonymous {
			keysOf(path, field.Type, keys)
		}
	}
}

// DataKeys are the keys of the plugin's plugin_data, without their sections.
func (l Later) DataKeys() []string {
	words := strings.FieldsFunc(l.Keys, func(r rune) bool { return strings.ContainsRune("{}* \t\n", r) })
	slices.Sort(words)
	return slices.Compact(words)
}
