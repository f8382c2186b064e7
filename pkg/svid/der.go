package svid

import (
	"slices"
	"time"

	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// writer writes DER into one buffer. cryptobyte.Builder does the same with an
// allocation or two for each element, which is a fifth of issuing a
// certificate; what is written here is a fixed structure of checked values.
type writer struct{ der []byte }

func newWriter(size int) *writer { return &writer{der: make([]byte, 0, size)} }

func (w *writer) bytes(b []byte) { w.der = append(w.der, b...) }

// open begins an element and returns where, for close.
func (w *writer) open(tag cbasn1.Tag) int {
	w.der = append(w.der, byte(tag), 0)
	return len(w.der)
}

// close writes the length of the element whose content began at start, moving
// the content when the length needs more than one byte (X.690, 10.1).
func (w *writer) close(start int) {
	n := len(w.der) - start
	if n < 0x80 {
		w.der[start-1] = byte(n)
		return
	}
	var length []byte
	for rest := n; rest > 0; rest >>= 8 {
		length = append(length, byte(rest))
	}
	w.der[start-1] = 0x80 | byte(len(length))
	slices.Reverse(length)
	w.der = slices.Insert(w.der, start, length...)
}

func (w *writer) value(tag cbasn1.Tag, b []byte) {
	at := w.open(tag)
	w.bytes(b)
	w.close(at)
}

func (w *writer) text(tag cbasn1.Tag, s string) {
	at := w.open(tag)
	w.der = append(w.der, s...)
	w.close(at)
}

// bitString writes whole bytes.
func (w *writer) bitString(b []byte) {
	at := w.open(cbasn1.BIT_STRING)
	w.der = append(w.der, 0)
	w.bytes(b)
	w.close(at)
}

// time writes UTCTime through 2049 and GeneralizedTime after (RFC 5280,
// 4.1.2.5).
func (w *writer) time(t time.Time) {
	tag, layout := cbasn1.UTCTime, "060102150405Z"
	if y := t.Year(); y < 1950 || y >= 2050 {
		tag, layout = cbasn1.GeneralizedTime, "20060102150405Z"
	}
	at := w.open(tag)
	w.der = t.AppendFormat(w.der, layout)
	w.close(at)
}

// openExtension begins a non-critical extension of the id-ce arc (2.5.29.n) and
// its value; both are closed by the caller, the value first.
func (w *writer) openExtension(n byte) (ext, value int) {
	ext = w.open(cbasn1.SEQUENCE)
	w.bytes([]byte{0x06, 0x03, 0x55, 0x1d, n})
	return ext, w.open(cbasn1.OCTET_STRING)
}
