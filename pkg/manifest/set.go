package manifest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// Set is the name of what a folder of files declares. Entries that have no ID
// of their own get one that begins with the name, and so the server's list says
// who made them: SPIRE's API keeps IDs that clients choose, and has no other
// field for an owner.
type Set struct{ name string }

// DefaultSet is the name of a set that has none.
const DefaultSet = "default"

// idPrefix begins the IDs of all sets, and the length of the digest in them.
const (
	idPrefix   = "apply."
	digestSize = 16 // bytes
)

var setName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// ParseSet reads the name of a set: up to 63 lower-case letters, digits and
// dashes, with no dash at either end. No name is the beginning of another's IDs,
// because there is no dot in it.
func ParseSet(name string) (Set, error) {
	if !setName.MatchString(name) {
		return Set{}, fmt.Errorf("%q is not the name of a set: up to 63 lower-case letters, digits and dashes, with no dash at either end", name)
	}
	return Set{name}, nil
}

// String is the name.
func (s Set) String() string { return s.name }

// ID is the ID of an entry of the set: the same for the same parent, SPIFFE ID
// and selectors, which is what makes an entry unique.
func (s Set) ID(e *types.Entry) string {
	digest := sha256.Sum256([]byte(keyOf(e)))
	return idPrefix + s.name + "." + hex.EncodeToString(digest[:digestSize])
}

// Owns says whether the entry with that ID was made for the set.
func (s Set) Owns(id string) bool {
	rest, ok := strings.CutPrefix(id, idPrefix+s.name+".")
	return ok && rest != "" && s.name != ""
}
