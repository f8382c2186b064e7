// Package keystest is the suite that every key manager passes: the contract of
// keys.Manager as tests.
//
// It is not for anything but tests. Managers that keep keys outside this
// process add tests of what only they can do wrong.
//
// Read [Run]. The invariant: a manager that passes can be put in the place of
// any other.
package keystest
