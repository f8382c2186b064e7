package main

import (
	"context"
	"os"
	"strings"
)

// mounts counts the mounts of the node below $MOUNTS that end in $SUFFIX, by
// mount point. The pod has the host's PIDs.
func mounts(ctx context.Context) error {
	all, err := os.ReadFile("/proc/1/mountinfo")
	if err != nil {
		return err
	}
	at := make(map[string]int)
	for line := range strings.Lines(string(all)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], os.Getenv("MOUNTS")) && strings.HasSuffix(fields[4], os.Getenv("SUFFIX")) {
			at[fields[4]]++
		}
	}
	for point, n := range at {
		tell(event{What: "mount", ID: point, Count: n})
	}
	tell(event{What: "counted", Count: len(at)})
	<-ctx.Done()
	return nil
}
