// Package diskkey keeps keys in one file, readable by its owner only. It is
// SPIRE's KeyManager "disk", in a file format of our own.
//
// The keys are not encrypted: whoever can read the file, or a backup of it, has
// them. It takes no lock on the file; the owner of the directory does.
//
// Read [Manager]. The invariant: the file holds all keys as of one moment, the
// old or the new ones after a crash; a file that cannot be read, or that others
// can read, is reported and never written over.
package diskkey
