package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	// File is where the value comes from: the path of a file, or the flag that
	// took the place of the file's value, such as "-serverPort". Empty: the
	// configuration was not read from anywhere.
	File string
	// Line in File, from 1; 0: none, such as for a key that is missing.
	Line int
	// Key is the path of the key, such as "server.bind_port".
	Key string
	// Err says what is wrong and what to do. It repeats no secret.
	Err error

	// lost is the path of a key that has no value because of this problem, so
	// that what a check says about it, and about what is below it, is noise.
	lost string
	// read says that the problem was found while reading the file, and not by a
	// check of what was read.
	read bool
}

// Error is "file:line: key: what", without the parts that are not known.
func (p *Problem) Error() string {
	text := p.Err.Error()
	if p.Key != "" {
		text = p.Key + ": " + text
	}
	switch {
	case p.Line > 0:
		return fmt.Sprintf("%s:%d: %s", p.File, p.Line, text)
	case p.File != "":
		return p.File + ": " + text
	default:
		return text
	}
}

func (p *Problem) Unwrap() error { return p.Err }

// Problems makes one error of many, one a line, in the order of the file: a
// caller may find them in any order. It takes joined errors apart, and leaves out
// nil, doubles, and what only follows from a key that could not be read or is
// misspelt. It returns nil when nothing is left.
func Problems(errs ...error) error {
	all := flatten(errs)
	var lost []string
	for _, err := range all {
		if p, ok := errors.AsType[*Problem](err); ok && p.lost != "" {
			lost = append(lost, p.lost)
		}
	}
	seen := make(map[string]bool)
	all = slices.DeleteFunc(all, func(err error) bool {
		text := err.Error()
		double := seen[text]
		seen[text] = true
		p, ok := errors.AsType[*Problem](err)
		return double || (ok && !p.read && slices.ContainsFunc(lost, p.about))
	})
	slices.SortStableFunc(all, func(a, b error) int {
		x, y := position(a), position(b)
		return cmp.Or(cmp.Compare(x.File, y.File), cmp.Compare(x.Line, y.Line), cmp.Compare(x.Key, y.Key))
	})
	return errors.Join(all...)
}

func flatten(errs []error) []error {
	var all []error
	for _, err := range errs {
		many, ok := err.(interface{ Unwrap() []error })
		switch {
		case err == nil:
		case ok:
			all = append(all, flatten(many.Unwrap())...)
		default:
			all = append(all, err)
		}
	}
	return all
}

func position(err error) Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return *p
	}
	return Problem{}
}

// about says whether the problem is with the key, or with one below it.
func (p *Problem) about(key string) bool {
	return p.Key == key || strings.HasPrefix(p.Key, key+".")
}
