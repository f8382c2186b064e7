package svid

import (
	"errors"
	"strings"
)

// ValidateDNSName returns the rule that a DNS name breaks, or nil: it has the
// preferred syntax of RFC 1034, 3.5, as RFC 1123, 2.1 relaxes it, in ASCII (an
// internationalized name is given in its xn-- form), and its first label may be
// the wildcard. Underscores are allowed, as service names have them and as
// crypto/x509 takes them in host names.
func ValidateDNSName(name string) error {
	switch {
	case name == "":
		return errors.New("is empty")
	case len(name) > 253:
		return errors.New("is longer than 253 bytes")
	}
	for label := range strings.SplitSeq(strings.TrimPrefix(name, "*."), ".") {
		if err := validateLabel(label); err != nil {
			return err
		}
	}
	return nil
}

func validateLabel(l string) error {
	switch {
	case l == "":
		return errors.New("has an empty label")
	case len(l) > 63:
		return errors.New("has a label longer than 63 bytes")
	case l[0] == '-' || l[len(l)-1] == '-':
		return errors.New("has a label that begins or ends with a hyphen")
	case strings.ContainsFunc(l, func(c rune) bool { return !isLabelChar(c) }):
		return errors.New("has a label of other than letters, digits, hyphens and underscores")
	}
	return nil
}

func isLabelChar(c rune) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}
