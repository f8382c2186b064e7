// Package dump writes the content of a store as one stream of bytes and makes a
// store of such a stream: the backup of the etcd engine, and the way from one
// engine to another.
//
// It goes through the contract alone and knows no engine. It is not the backup
// of the embedded engine, which is a database file, and it decides nothing
// about files: it is given a reader or a writer.
//
// Read [Write] and [Read] first. A stream is a line that says what it is, then
// frames, each a kind (one byte), a length (uvarint) and that many bytes: a
// header (JSON), pages of keys and values, and a trailer (JSON) with their
// number and the SHA-256 of all before it.
//
// The invariant: a store that Read has begun to fill and not finished has the
// key [Marker], and [CheckWhole] refuses it; that key is never part of a stream.
package dump
