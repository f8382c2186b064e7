package config

import "strings"

// value is a node of the file, the same for HCL and JSON.
type value struct {
	kind  kind
	line  int
	text  string   // of a text, number or boolean
	list  []*value // of a list
	items []item   // of an object, in file order; a key may occur more than once
}

type item struct {
	key  string
	line int
	val  *value
}

type kind int

const (
	null kind = iota
	text
	number
	boolean
	list
	object
)

// describe says what a value is without repeating it.
func (k kind) describe() string {
	return [...]string{"null", "a text", "a number", "true or false", "a list", "a section"}[k]
}

// lookup returns the items with this key. Case does not matter, as in SPIRE.
func (v *value) lookup(key string) []item {
	var found []item
	for _, it := range v.items {
		if strings.EqualFold(it.key, key) {
			found = append(found, it)
		}
	}
	return found
}

// objects flattens v, an object or a list of objects, into the objects in it;
// ok is false when there is anything else in v.
func (v *value) objects() (flat []*value, ok bool) {
	switch v.kind {
	case null:
		return nil, true
	case object:
		return []*value{v}, true
	case list:
		for _, e := range v.list {
			if e.kind != object {
				return nil, false
			}
		}
		return v.list, true
	default:
		return nil, false
	}
}
