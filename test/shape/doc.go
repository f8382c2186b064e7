// Package shape tests the code base itself: which room may import which, that
// every package says what it is, that names are unique, that files and
// functions stay small, and a few rules a linter does not know.
//
// It has no code but tests, and it does not test behaviour. A rule that turns
// out to be wrong is changed here, in the open, not worked around.
//
// Read imports_test.go first: its table is docs/architecture.md in executable
// form. The invariant: every package of the module is in that table.
package shape
