package audit

import (
	"context"
	"log/slog"
	"sync/atomic"
	"unicode/utf8"
)

// Limits of one record.
const (
	// MaxText is the longest text of one attribute in bytes; longer ones are cut.
	MaxText = 1024
	// MaxAttrs is how many attributes of its own an intent or an outcome may
	// have; further ones are dropped, and their number is recorded.
	MaxAttrs = 32
)

const msgOutcome = "audit outcome"

// Keys of this package's own attributes.
const (
	keyStream     = "stream"
	keyID         = "audit_id"
	keyAction     = "action"
	keyCaller     = "caller"
	keyCallerKind = "caller_kind"
	keySubject    = "subject"
	keyOutcome    = "outcome"
	keyErr        = "err"
	keyDropped    = "dropped_attrs"
)

// Event is one security decision.
type Event struct {
	// Action is what is decided, as noun.verb: "x509svid.mint", "agent.ban".
	Action string
	// Caller is who asked: a SPIFFE ID, or "uid:0" on the local socket.
	Caller string
	// CallerKind is the kind the policy saw: local, admin, agent, downstream, anyone.
	CallerKind string
	// Subject is what it is about: the SPIFFE ID issued, the entry, the agent.
	Subject string
	// Attrs is whatever else identifies the decision.
	Attrs []slog.Attr
}

// Log writes audit records. A nil *Log is valid and writes nothing. It is safe
// for concurrent use.
type Log struct {
	log  *slog.Logger
	last atomic.Uint64 // the newest audit_id of this process
}

// New returns an audit log that writes to log; a nil log gives a nil *Log.
func New(log *slog.Logger) *Log {
	if log == nil {
		return nil
	}
	return &Log{log: log.With(keyStream, "audit")}
}

// Begin records the intent and returns the function that records the outcome:
// nil for done, else the reason why not, and whatever became known meanwhile
// (the serial issued, the expiry). It is called once; later calls do nothing.
func (l *Log) Begin(ctx context.Context, e Event) func(err error, attrs ...slog.Attr) {
	if l == nil {
		return func(error, ...slog.Attr) {}
	}
	id := l.last.Add(1)
	l.log.LogAttrs(ctx, slog.LevelInfo, "audit intent", record(id, e, nil, nil)...)

	var done atomic.Bool
	return func(err error, attrs ...slog.Attr) {
		if done.Swap(true) {
			return
		}
		l.log.LogAttrs(ctx, slog.LevelInfo, msgOutcome, record(id, e, outcome(err), attrs)...)
	}
}

// Record writes a decision that was made in one step, such as a refusal: an
// outcome without an intent.
func (l *Log) Record(ctx context.Context, e Event, err error) {
	if l == nil {
		return
	}
	l.log.LogAttrs(ctx, slog.LevelInfo, msgOutcome, record(l.last.Add(1), e, outcome(err), nil)...)
}

func outcome(err error) []slog.Attr {
	if err == nil {
		return []slog.Attr{slog.String(keyOutcome, "done")}
	}
	return []slog.Attr{slog.String(keyOutcome, "refused"), slog.String(keyErr, cut(err.Error()))}
}

// record is the attributes of one log line, bounded.
func record(id uint64, e Event, result, more []slog.Attr) []slog.Attr {
	attrs := make([]slog.Attr, 0, 7+len(e.Attrs)+len(more))
	attrs = append(attrs, slog.Uint64(keyID, id), slog.String(keyAction, cut(e.Action)))
	for _, a := range []slog.Attr{
		slog.String(keyCaller, cut(e.Caller)),
		slog.String(keyCallerKind, cut(e.CallerKind)),
		slog.String(keySubject, cut(e.Subject)),
	} {
		if a.Value.String() != "" {
			attrs = append(attrs, a)
		}
	}
	attrs = append(attrs, result...)
	attrs = appendBounded(attrs, e.Attrs)
	return appendBounded(attrs, more)
}

func appendBounded(to, attrs []slog.Attr) []slog.Attr {
	kept := attrs[:min(len(attrs), MaxAttrs)]
	for _, a := range kept {
		if a.Value.Kind() != slog.KindInt64 && a.Value.Kind() != slog.KindTime {
			a.Value = slog.StringValue(cut(a.Value.String()))
		}
		to = append(to, a)
	}
	if dropped := len(attrs) - len(kept); dropped > 0 {
		to = append(to, slog.Int(keyDropped, dropped))
	}
	return to
}

// cut shortens a text to MaxText bytes, at the start of a character.
func cut(text string) string {
	if len(text) <= MaxText {
		return text
	}
	end := MaxText - len("…")
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}
