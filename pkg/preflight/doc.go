// Package preflight says before a program starts whether it will be able to use
// the directories and files that its configuration names.
//
// It is for the validate commands and for what run checks first, so that the
// two refuse the same. It looks and changes nothing: it makes no directory, opens
// no log file for writing and binds no socket, so that it may be used beside a
// running program. What it says can be out of date when the program starts;
// whoever then uses a file reports its errors as well.
//
// Read [Dir] first. The invariant: no error for what the program could use.
package preflight
