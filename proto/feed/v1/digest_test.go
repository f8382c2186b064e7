package feedv1

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"
)

// TestDigestIsOfTheProto pins the digest to figures computed from the text in
// feed.proto with other tools, as both ends of the wire must agree.
func TestDigestIsOfTheProto(t *testing.T) {
	t.Parallel()
	const id = "entry-1"
	hash := sha256.Sum256([]byte(id))
	if got, want := Bucket(id), hash[0]; got != want {
		t.Errorf("Bucket = %d, want %d", got, want)
	}
	// printf 'entry-1\x00\x00\x00\x00\x00\x00\x00\x00\x2a' | sha256sum
	if got, want := Sum(id, 42), uint64(sumOfEntry1At42); got != want {
		t.Errorf("Sum = %#x, want %#x", got, want)
	}
	// head -c 2048 /dev/zero | sha256sum
	if got, want := hex.EncodeToString(Digest(new([Buckets]uint64))), emptyDigest; got != want {
		t.Errorf("Digest of nothing = %s, want %s", got, want)
	}
}

const (
	sumOfEntry1At42 = 0x4920a7438a9a3021
	emptyDigest     = "e5a00aa9991ac8a5ee3109844d84a55583bd20572ad3ffcd42792f3c36b183ad"
)
