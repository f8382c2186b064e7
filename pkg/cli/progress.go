package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// How often progress is said at most: on a terminal, where a line replaces the
// one before, and elsewhere, where lines pile up.
const (
	terminalPause = 100 * time.Millisecond
	linePause     = 2 * time.Second
)

// Progress says on a stream, usually stderr, how far a long piece of work is.
// It says so on a terminal, and elsewhere only if the flag -progress asks for
// it; otherwise it is silent. Its methods may be called concurrently.
type Progress struct {
	asked bool

	mu       sync.Mutex
	w        io.Writer // nil: silent
	terminal bool
	what     string
	total    int
	done     int
	said     time.Time // when the last line was written; zero: never
	saidDone int
}

// ProgressFlag adds the flag -progress to flags.
func ProgressFlag(flags *pflag.FlagSet) *Progress {
	p := new(Progress)
	flags.BoolVar(&p.asked, "progress", false, "say on standard error how far the work is, also if that is not a terminal")
	return p
}

// Start begins a piece of work of total items, called what, such as "creating
// entries", and says so on w. A total of 0 means that the number is not known.
// It ends what was begun before.
func (p *Progress) Start(w io.Writer, what string, total int) {
	p.End()
	p.mu.Lock()
	defer p.mu.Unlock()
	f, ok := w.(*os.File)
	p.terminal = ok && term.IsTerminal(int(f.Fd()))
	if !p.terminal && !p.asked {
		return
	}
	p.w, p.what, p.total, p.done = w, what, total, 0
	p.say(time.Now())
}

// Add says that n more items are done. Most calls write nothing: see the bounds
// of this file.
func (p *Progress) Add(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w == nil {
		return
	}
	p.done += n
	pause := linePause
	if p.terminal {
		pause = terminalPause
	}
	if now := time.Now(); now.Sub(p.said) >= pause {
		p.say(now)
	}
}

// End ends the piece of work: it writes the last count, if that was not said
// yet. Ending twice, or what never began, does nothing.
func (p *Progress) End() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.w == nil {
		return
	}
	if p.saidDone != p.done {
		p.say(time.Now())
	}
	if p.terminal {
		fmt.Fprintln(p.w)
	}
	p.w = nil
}

func (p *Progress) say(now time.Time) {
	text := fmt.Sprintf("%s: %d", p.what, p.done)
	if p.total > 0 {
		text += fmt.Sprintf(" of %d", p.total)
	}
	if p.terminal {
		text = "\r\x1b[K" + text
	} else {
		text += "\n"
	}
	fmt.Fprint(p.w, text)
	p.said, p.saidDone = now, p.done
}
