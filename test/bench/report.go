package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// document is what one run of the harness found.
type document struct {
	Date    time.Time `json:"date"`
	Commit  string    `json:"commit"`
	Machine string    `json:"machine"`
	Command []string  `json:"command"`
	// LoadBefore is the machine's load average before the run.
	LoadBefore string     `json:"load_average_before"`
	Results    []measured `json:"results"`
}

// measured is one measurement, repeated.
type measured struct {
	Name string `json:"name"`
	What string `json:"what"`
	// Of says whose programs: empty for ours, spire, or the ratio of both.
	Of   string `json:"of,omitempty"`
	Runs int    `json:"runs"`
	// LoadAfter is the machine's load average after it: of the last minute,
	// and of the last five.
	LoadAfter string            `json:"load_average_after"`
	Figures   map[string]figure `json:"figures"`
	// Other is what has no number, of the last run.
	Other map[string]any `json:"other,omitempty"`
}

// figure is over the runs; its key ends in its unit.
type figure struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

func newDocument(ctx context.Context) *document {
	return &document{Date: time.Now().UTC().Truncate(time.Second), Commit: commit(ctx), Machine: machine(), Command: os.Args, LoadBefore: loadAverage()}
}

// summary makes figures of several runs.
func summary(name, what, of string, all []result) measured {
	m := measured{Name: name, What: what, Of: of, Runs: len(all), LoadAfter: loadAverage(), Figures: map[string]figure{}, Other: map[string]any{}}
	for key, last := range all[len(all)-1] {
		var values []float64
		for _, r := range all {
			if f, ok := r[key].(float64); ok {
				values = append(values, f)
			}
		}
		if len(values) == 0 {
			m.Other[key] = last
			continue
		}
		slices.Sort(values)
		m.Figures[key] = figure{Min: values[0], Median: values[len(values)/2], Max: values[len(values)-1]}
	}
	return m
}

// ratio is theirs divided by ours, for each figure that both have.
func ratio(ours, theirs measured) measured {
	m := measured{Name: ours.Name, What: ours.What, Of: "spire/ours", Runs: ours.Runs, LoadAfter: ours.LoadAfter, Figures: map[string]figure{}}
	for key, a := range ours.Figures {
		if b, both := theirs.Figures[key]; both && a.Median != 0 {
			r := rounded(10*b.Median/a.Median) / 10
			m.Figures[key] = figure{r, r, r}
		}
	}
	return m
}

// table writes a measurement for people.
func (m measured) table(w io.Writer) error {
	of := ""
	if m.Of != "" {
		of = ", " + m.Of
	}
	fmt.Fprintf(w, "\n%s%s: %s (%d runs; load average %s)\n", m.Name, of, m.What, m.Runs, m.LoadAfter)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "figure\tmedian\tmin\tmax\t")
	for _, key := range slices.Sorted(maps.Keys(m.Figures)) {
		f := m.Figures[key]
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t\n", key, short(f.Median), short(f.Min), short(f.Max))
	}
	for _, key := range slices.Sorted(maps.Keys(m.Other)) {
		if v := m.Other[key]; v != nil {
			fmt.Fprintf(t, "%s\t%v\t\t\t\n", key, v)
		}
	}
	return t.Flush()
}

// short has three digits behind the point at the most.
func short(f float64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.3f", f), "0"), ".")
}

// write puts the document into the file, if one is named.
func (d *document) write(file string) error {
	if file == "" {
		return nil
	}
	out, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(out, '\n'), 0o644) //nolint:gosec // figures, for anyone
}

func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func machine() string {
	cpu, mem, kernel := "unknown processor", "", ""
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		cpu = field(string(text), "model name")
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		mem = field(string(text), "MemTotal")
	}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel = strings.TrimSpace(string(text))
	}
	return fmt.Sprintf("%d × %s, %s, Linux %s, %s", runtime.NumCPU(), cpu, mem, kernel, runtime.Version())
}

// field is the value of the first line `name: value`.
func field(text, name string) string {
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	f := strings.Fields(string(text))
	return strings.Join(f[:min(2, len(f))], " ")
}
