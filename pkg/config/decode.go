package config

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Raw is a section that is decoded later, by the one who knows its type.
type Raw struct {
	file *File
	path string
	val  *value
}

// IsSet says whether the section is in the file and not null.
func (r Raw) IsSet() bool { return r.val != nil }

// Decode fills the struct that into points to, as [File.Decode] does. A section
// that is not set leaves it as it is.
func (r Raw) Decode(into any) error {
	if r.val == nil {
		return nil
	}
	return decodeInto(r.file, r.path, r.val, into)
}

// Word is a text, or the label of a section that stands where a text could, as
// in `database_type "aws_mysql" { … }`; empty for anything else.
func (r Raw) Word() string {
	switch {
	case r.val == nil:
		return ""
	case r.val.kind == text:
		return r.val.text
	}
	if objects, ok := r.val.objects(); ok && len(objects) == 1 && len(objects[0].items) == 1 {
		return objects[0].items[0].key
	}
	return ""
}

var (
	rawType      = reflect.TypeFor[Raw]()
	pluginsType  = reflect.TypeFor[Plugins]()
	durationType = reflect.TypeFor[time.Duration]()
)

// decoder collects the problems of one Decode.
type decoder struct {
	file     *File
	problems []error
}

func (d *decoder) problem(line int, path, format string, args ...any) {
	d.losing("", line, path, format, args...)
}

// losing is a problem because of which the key lost has no value.
func (d *decoder) losing(lost string, line int, path, format string, args ...any) {
	err := fmt.Errorf(format, args...)
	d.problems = append(d.problems, &Problem{File: d.file.name, Line: line, Key: path, Err: err, lost: lost, read: true})
}

// unread is the problem of a value that cannot be read into its field.
func (d *decoder) unread(line int, path, format string, args ...any) {
	d.losing(path, line, path, format, args...)
}

func (d *decoder) expected(v *value, path, want string) {
	d.unread(v.line, path, "expected %s, got %s", want, v.kind.describe())
}

func (d *decoder) decode(path string, v *value, to reflect.Value) {
	if v.kind == null {
		return
	}
	switch to.Type() {
	case rawType:
		to.Set(reflect.ValueOf(Raw{file: d.file, path: path, val: v}))
		return
	case pluginsType:
		to.Set(reflect.ValueOf(d.plugins(path, v)))
		return
	case durationType:
		d.duration(path, v, to)
		return
	}
	if to.Kind() == reflect.Pointer {
		if to.IsNil() {
			to.Set(reflect.New(to.Type().Elem()))
		}
		d.decode(path, v, to.Elem())
		return
	}
	if u, ok := to.Addr().Interface().(encoding.TextUnmarshaler); ok {
		d.unmarshalText(path, v, u)
		return
	}
	switch to.Kind() {
	case reflect.Struct:
		d.structure(path, v, to)
	case reflect.Map:
		d.mapping(path, v, to)
	case reflect.Slice:
		d.slice(path, v, to)
	default:
		d.scalar(path, v, to)
	}
}

func (d *decoder) structure(path string, v *value, to reflect.Value) {
	objects, ok := v.objects()
	if !ok {
		d.expected(v, path, "a section")
		return
	}
	if len(objects) > 1 {
		d.problem(objects[1].line, path, "section is set twice; it is also on line %d", objects[0].line)
		return
	}
	if len(objects) == 0 {
		return
	}
	obj := objects[0]
	known := d.fields(path, obj, to)
	for _, it := range obj.items {
		if !containsFold(known, it.key) {
			lost := ""
			if near := nearest(it.key, known); near != "" {
				lost = join(path, near)
			}
			d.losing(lost, it.line, join(path, it.key), "unknown key%s", didYouMean(it.key, known))
		}
	}
}

// fields decodes the fields of a struct, and of structs embedded in it, and
// returns their keys.
func (d *decoder) fields(path string, obj *value, to reflect.Value) []string {
	var known []string
	for i := range to.NumField() {
		field := to.Type().Field(i)
		key := field.Tag.Get("hcl")
		if key == "" {
			if field.Anonymous && field.Type.Kind() == reflect.Struct {
				known = append(known, d.fields(path, obj, to.Field(i))...)
			}
			continue
		}
		known = append(known, key)
		found := obj.lookup(key)
		if len(found) == 0 {
			continue
		}
		val := found[0].val
		if len(found) > 1 {
			if !repeatable(field.Type) {
				d.problem(found[1].line, join(path, key), "key is set twice; it is also on line %d", found[0].line)
				continue
			}
			val = gather(found)
		}
		d.decode(join(path, key), val, to.Field(i))
	}
	return known
}

// repeatable says whether a section may be written several times.
func repeatable(t reflect.Type) bool {
	if t.Kind() == reflect.Slice {
		return t == pluginsType || t.Elem().Kind() == reflect.Struct
	}
	return t.Kind() == reflect.Map
}

// gather makes one list of sections that were written one after the other.
func gather(found []item) *value {
	all := &value{kind: list, line: found[0].line}
	for _, it := range found {
		if it.val.kind == list {
			all.list = append(all.list, it.val.list...)
		} else {
			all.list = append(all.list, it.val)
		}
	}
	return all
}

func (d *decoder) mapping(path string, v *value, to reflect.Value) {
	objects, ok := v.objects()
	if !ok || to.Type().Key().Kind() != reflect.String {
		d.expected(v, path, "a section")
		return
	}
	if to.IsNil() {
		to.Set(reflect.MakeMap(to.Type()))
	}
	lines := make(map[string]int)
	for _, obj := range objects {
		for _, it := range obj.items {
			if line, ok := lines[it.key]; ok {
				d.problem(it.line, join(path, it.key), "key is set twice; it is also on line %d", line)
				continue
			}
			lines[it.key] = it.line
			elem := reflect.New(to.Type().Elem()).Elem()
			d.decode(join(path, it.key), it.val, elem)
			to.SetMapIndex(reflect.ValueOf(it.key).Convert(to.Type().Key()), elem)
		}
	}
}

func (d *decoder) slice(path string, v *value, to reflect.Value) {
	elems := v.list
	switch {
	case v.kind == object && to.Type().Elem().Kind() != reflect.String:
		elems = []*value{v}
	case v.kind != list:
		d.expected(v, path, "a list")
		return
	}
	out := reflect.MakeSlice(to.Type(), len(elems), len(elems))
	for i, e := range elems {
		d.decode(fmt.Sprintf("%s[%d]", path, i), e, out.Index(i))
	}
	to.Set(out)
}

func (d *decoder) duration(path string, v *value, to reflect.Value) {
	parsed, err := time.ParseDuration(v.text)
	if v.kind != text || err != nil {
		d.unread(v.line, path, `expected a duration in quotes, such as "1h" or "90s"`)
		return
	}
	to.SetInt(int64(parsed))
}

func (d *decoder) unmarshalText(path string, v *value, u encoding.TextUnmarshaler) {
	if v.kind != text && v.kind != number {
		d.expected(v, path, "a text")
		return
	}
	if err := u.UnmarshalText([]byte(v.text)); err != nil {
		d.unread(v.line, path, "%v", err)
	}
}

func (d *decoder) scalar(path string, v *value, to reflect.Value) {
	isScalar := v.kind == text || v.kind == number || v.kind == boolean
	switch to.Kind() {
	case reflect.String:
		if v.kind != text && v.kind != number {
			d.expected(v, path, "a text")
			return
		}
		to.SetString(v.text)
	case reflect.Bool:
		b, err := strconv.ParseBool(v.text)
		if !isScalar || err != nil {
			d.expected(v, path, "true or false")
			return
		}
		to.SetBool(b)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, err := strconv.ParseInt(v.text, 0, to.Type().Bits())
		if !isScalar || err != nil {
			d.expected(v, path, fmt.Sprintf("a whole number of %d bits", to.Type().Bits()))
			return
		}
		to.SetInt(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(v.text, 0, to.Type().Bits())
		if !isScalar || err != nil {
			d.expected(v, path, fmt.Sprintf("a whole number of %d bits, not negative", to.Type().Bits()))
			return
		}
		to.SetUint(n)
	case reflect.Float32, reflect.Float64:
		f, err := strconv.ParseFloat(v.text, to.Type().Bits())
		if !isScalar || err != nil {
			d.expected(v, path, "a number")
			return
		}
		to.SetFloat(f)
	default:
		d.problem(v.line, path, "key cannot be decoded into a Go %s", to.Type())
	}
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func containsFold(keys []string, key string) bool {
	for _, k := range keys {
		if strings.EqualFold(k, key) {
			return true
		}
	}
	return false
}
