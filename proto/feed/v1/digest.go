package feedv1

import (
	"crypto/sha256"
	"encoding/binary"
)

// Buckets is the number of buckets of the digest over what an agent holds.
const Buckets = 256

// Bucket is the bucket an entry belongs to: the first byte of
// SHA-256(entry ID).
func Bucket(entryID string) uint8 {
	sum := sha256.Sum256([]byte(entryID))
	return sum[0]
}

// Sum is what an entry adds (XOR) to its bucket's sum: the first 8 bytes, big
// endian, of SHA-256(entry ID, 0x00, revision as 8 bytes big endian). Adding it
// twice takes it away again.
func Sum(entryID string, revision uint64) uint64 {
	b := make([]byte, 0, 64)
	b = append(b, entryID...)
	b = append(b, 0)
	b = binary.BigEndian.AppendUint64(b, revision)
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint64(sum[:8])
}

// Digest is the SHA-256 over the bucket sums, 8 bytes big endian each, as in
// Synced.digest.
func Digest(sums *[Buckets]uint64) []byte {
	b := make([]byte, 0, 8*Buckets)
	for _, s := range sums {
		b = binary.BigEndian.AppendUint64(b, s)
	}
	sum := sha256.Sum256(b)
	return sum[:]
}
