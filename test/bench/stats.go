package main

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// latencies adds the usual percentiles, in milliseconds.
func (r result) latencies(prefix string, ls []time.Duration) {
	if len(ls) == 0 {
		return
	}
	slices.Sort(ls)
	at := func(q float64) float64 {
		i := int(math.Ceil(q*float64(len(ls)))) - 1
		return ms(ls[max(i, 0)])
	}
	r[prefix+"p50_ms"], r[prefix+"p99_ms"], r[prefix+"max_ms"] = at(0.5), at(0.99), ms(ls[len(ls)-1])
}

func ms(d time.Duration) float64 { return math.Round(float64(d)/1e3) / 1e3 }

func rounded(f float64) float64 { return math.Round(f*10) / 10 }

// clockTick is the unit of CPU time in /proc: USER_HZ, 100 on Linux.
const clockTick = 10 * time.Millisecond

// cpu is the user and system time a process has used.
func cpu(pid int) (time.Duration, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command's name, in parentheses, may have blanks.
	_, rest, _ := strings.Cut(string(data), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}

// anonMiB is a process's anonymous resident memory; mapped files are not in it.
func anonMiB(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return rounded(kib / 1024), err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no RssAnon", pid)
}
