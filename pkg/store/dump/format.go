package dump

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/credence-id/credence/pkg/store"
)

const (
	// magic is how a stream begins.
	magic = "credence store dump\n"
	// version of the stream that this program writes and the newest it reads.
	version = 1
	// pageSize is how much of keys and values goes into one frame, at least.
	pageSize = 256 << 10
	// maxFrame bounds a frame: a page and one more value.
	maxFrame = pageSize + store.MaxBytes + store.MaxKey + 64
)

// Kinds of frames.
const (
	frameHeader  = 'h'
	framePage    = 'p'
	frameTrailer = 't'
)

var (
	// ErrDamaged is returned for a stream that ends early, or whose bytes are
	// not those that were written.
	ErrDamaged = errors.New("dump is damaged")
	// ErrFormat is returned for a stream that a newer program wrote, and for
	// what is no such stream.
	ErrFormat = errors.New("dump cannot be read by this program")
)

// Summary is what a stream holds.
type Summary struct {
	// StoreID, Engine, Format and Revision are those of the store that was
	// written. None of them is what a store made of the stream has.
	StoreID  string         `json:"store_id"`
	Engine   string         `json:"engine"`
	Format   int            `json:"format"`
	Revision store.Revision `json:"revision"`
	// Time is when it was written, by the clock of who wrote it.
	Time time.Time `json:"time"`
	// Keys and Bytes count its keys, and the bytes of keys and values.
	Keys  int   `json:"-"`
	Bytes int64 `json:"-"`
}

// header and trailer are the frames in JSON.
type header struct {
	Version int `json:"version"`
	Summary
}

type trailer struct {
	Keys   int    `json:"keys"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"` // of the stream before this frame
}

// encoder writes a stream.
type encoder struct {
	w    io.Writer
	hash hash.Hash
	page []byte
	sum  Summary
}

func newEncoder(w io.Writer, sum Summary) (*encoder, error) {
	e := &encoder{hash: sha256.New(), sum: sum}
	e.w = io.MultiWriter(e.hash, w)
	if _, err := io.WriteString(e.w, magic); err != nil {
		return nil, err
	}
	return e, e.json(frameHeader, header{version, sum})
}

func (e *encoder) frame(kind byte, payload []byte) error {
	head := binary.AppendUvarint([]byte{kind}, uint64(len(payload)))
	if _, err := e.w.Write(head); err != nil {
		return err
	}
	_, err := e.w.Write(payload)
	return err
}

func (e *encoder) json(kind byte, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return e.frame(kind, text)
}

func (e *encoder) add(kv store.KV) error {
	e.page = appendKV(e.page, kv.Key, kv.Value)
	e.sum.count(kv.Key, kv.Value)
	if len(e.page) < pageSize {
		return nil
	}
	return e.flush()
}

func (e *encoder) flush() error {
	if len(e.page) == 0 {
		return nil
	}
	err := e.frame(framePage, e.page)
	e.page = e.page[:0]
	return err
}

func (e *encoder) finish() error {
	if err := e.flush(); err != nil {
		return err
	}
	return e.json(frameTrailer, trailer{e.sum.Keys, e.sum.Bytes, hex.EncodeToString(e.hash.Sum(nil))})
}

// appendKV adds a key and its value, each after its length.
func appendKV(b []byte, key string, value []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(key)))
	b = append(b, key...)
	b = binary.AppendUvarint(b, uint64(len(value)))
	return append(b, value...)
}

func (s *Summary) count(key string, value []byte) {
	s.Keys++
	s.Bytes += int64(len(key) + len(value))
}

// decoder reads a stream.
type decoder struct {
	r    *bufio.Reader
	hash hash.Hash
	sum  Summary
	last string // key
}

// decode reads a whole stream and gives each key and value to take, in order.
func decode(r io.Reader, take func(key string, value []byte) error) (Summary, error) {
	d := &decoder{r: bufio.NewReader(r), hash: sha256.New()}
	if err := d.header(); err != nil {
		return Summary{}, err
	}
	for {
		before := d.hash.Sum(nil)
		kind, payload, err := d.frame()
		switch {
		case err != nil:
			return d.sum, err
		case kind == frameTrailer:
			return d.sum, d.trailer(payload, before)
		case kind != framePage:
			return d.sum, fmt.Errorf("%w: a frame of unknown kind %q", ErrDamaged, kind)
		}
		if err := d.page(payload, take); err != nil {
			return d.sum, err
		}
	}
}

func (d *decoder) header() error {
	line := make([]byte, len(magic))
	if _, err := io.ReadFull(d.r, line); err != nil && !short(err) {
		return fmt.Errorf("reading dump: %w", err)
	}
	if string(line) != magic {
		return fmt.Errorf("%w: it does not begin as a dump does", ErrFormat)
	}
	d.hash.Write(line)
	kind, payload, err := d.frame()
	if err != nil {
		return err
	}
	var h header
	if err := json.Unmarshal(payload, &h); kind != frameHeader || err != nil || h.Version < 1 {
		return fmt.Errorf("%w: its header cannot be read", ErrDamaged)
	}
	if h.Version > version {
		return fmt.Errorf("%w: it has version %d, this program knows up to %d: run the newer program", ErrFormat, h.Version, version)
	}
	d.sum = h.Summary
	return nil
}

// frame reads the next frame.
func (d *decoder) frame() (kind byte, payload []byte, err error) {
	if kind, err = d.r.ReadByte(); err != nil {
		return 0, nil, cut(err)
	}
	size, err := d.length()
	if err != nil {
		return 0, nil, err
	}
	payload = make([]byte, size)
	if _, err := io.ReadFull(d.r, payload); err != nil {
		return 0, nil, cut(err)
	}
	d.hash.Write(binary.AppendUvarint([]byte{kind}, size))
	d.hash.Write(payload)
	return kind, payload, nil
}

// length reads a frame's length, which has one form only, the shortest.
func (d *decoder) length() (uint64, error) {
	b, err := d.r.Peek(binary.MaxVarintLen64)
	size, n := binary.Uvarint(b)
	switch {
	case n == 0 && err != nil:
		return 0, cut(err)
	case n <= 0 || n > 1 && b[n-1] == 0:
		return 0, fmt.Errorf("%w: a frame's length is no number", ErrDamaged)
	case size > maxFrame:
		return 0, fmt.Errorf("%w: a frame of %d bytes", ErrDamaged, size)
	}
	if _, err := d.r.Discard(n); err != nil {
		return 0, cut(err)
	}
	return size, nil
}

func short(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// cut is the error for a stream that ends, or cannot be read, before its
// trailer.
func cut(err error) error {
	if short(err) {
		return fmt.Errorf("%w: it ends early", ErrDamaged)
	}
	return fmt.Errorf("reading dump: %w", err)
}

// page takes the keys and values of a frame.
func (d *decoder) page(b []byte, take func(key string, value []byte) error) error {
	for len(b) > 0 {
		key, rest, ok := cutField(b)
		value, rest, ok2 := cutField(rest)
		if !ok || !ok2 || string(key) <= d.last || len(key) > store.MaxKey || len(key)+len(value) > store.MaxBytes {
			return fmt.Errorf("%w: after key %q", ErrDamaged, d.last)
		}
		d.last = string(key)
		d.sum.count(d.last, value)
		if err := take(d.last, bytes.Clone(value)); err != nil {
			return err
		}
		b = rest
	}
	return nil
}

func cutField(b []byte) (field, rest []byte, ok bool) {
	size, n := binary.Uvarint(b)
	if n <= 0 || size > uint64(len(b)-n) {
		return nil, nil, false
	}
	b = b[n:]
	return b[:size:size], b[size:], true
}

// trailer compares what was read with what was written, and wants the stream to
// end there.
func (d *decoder) trailer(payload, digest []byte) error {
	want, err := json.Marshal(trailer{d.sum.Keys, d.sum.Bytes, hex.EncodeToString(digest)})
	if err != nil || !bytes.Equal(payload, want) {
		return fmt.Errorf("%w: its digest does not match", ErrDamaged)
	}
	if _, err := d.r.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it goes on after its end", ErrDamaged)
	}
	return nil
}
