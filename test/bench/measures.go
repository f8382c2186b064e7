package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// result is what one measurement found; keys end in their unit.
type result map[string]any

// measurement runs once; runs are repeated by main.
type measurement struct {
	name string
	what string
	run  func(context.Context, *bench) (result, error)
	// peers says that it works on SPIRE's programs too, in bearable time.
	peers bool
}

// measurements are by the P-numbers of docs/performance.md.
var measurements = map[string]measurement{
	"p1":        {what: "entry created until its SVID is on a workload's stream", run: propagationQuiet},
	"p1-loaded": {what: "the same under 100 commits a second and 1,000 open streams of another user", run: propagationLoaded},
	"p1-fanout": {what: "the same when 1,000 more streams get each change", run: propagationFanout},
	"p3":        {what: "MintX509SVID, 64 callers", run: mintX509, peers: true},
	"p4":        {what: "MintJWTSVID, 64 callers", run: mintJWT, peers: true},
	"p5":        {what: "BatchNewX509SVID, 50 CSRs over mTLS", run: batchX509, peers: true},
	"p6":        {what: "BatchCreateEntry, batches of 50, alone and 8 callers, at 0 and at 100,000 entries", run: createEntries(100_000), peers: true},
	"p6-10k":    {what: "the same at 0 and at 10,000 entries, which SPIRE gets to in bearable time", run: createEntries(10_000), peers: true},
	"p7":        {what: "ListEntries, 100,000 entries, pages of 1,000", run: listEntries(100_000), peers: true},
	"p7-10k":    {what: "the same with 10,000 entries", run: listEntries(10_000), peers: true},
	"p12":       {what: "server start until it serves, empty and with 100,000 entries", run: coldServer},
	"p13":       {what: "agent start until a workload has its SVID", run: coldAgent},
	"p14":       {what: "FetchX509SVID, a new connection each, 16 callers", run: workloadX509, peers: true},
	"p15":       {what: "FetchJWTSVID cached by the agent, 16 callers", run: workloadJWT, peers: true},
	"p16":       {what: "ValidateJWTSVID, 16 callers", run: workloadValidate, peers: true},
	"p18":       {what: "memory of an idle server and an idle agent, sizes of the binaries", run: idle, peers: true},

	"p9":       {what: "a server at rest with 100,000 entries", run: idleServer},
	"p11":      {what: "what keeps one agent with 10,000 entries in sync while nothing changes", run: idleBytes},
	"p21":      {what: "100,000 agents and 1,000,000 entries on three servers, calculated from costs that are measured", run: plan},
	"p17":      {what: "2,000 open workload streams: memory, opening, one change to all", run: manyStreams},
	"growth":   {what: "P3, P6, P7, P8 and P12 at several sizes, see -sizes", run: growth},
	"rolling":  {what: "2,000 agents while three servers over an etcd are restarted in turn", run: rollingRestart},
	"p10":      {what: "1,000 idle agents on the push stream, 10 entries each", run: idleAgents},
	"p10-poll": {what: "1,000 agents that poll every 5 s, as SPIRE's do", run: pollingAgents},
	"p20":      {what: "5,000 agents, 10,000 entries each through one alias, 278 SVIDs a second, one change a second to all", run: largeFleet},
}

// errSkipped is wrapped by what keeps a measurement from being made here.
var errSkipped = errors.New("not on this machine")

func skipped(err error) bool { return errors.Is(err, errSkipped) }

// sizes is a flag with numbers.
type sizes []int

// String is flag.Value.
func (s *sizes) String() string { return strings.Trim(fmt.Sprint([]int(*s)), "[]") }

// Set is flag.Value.
func (s *sizes) Set(text string) error {
	*s = nil
	for part := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 1 {
			return fmt.Errorf("%q is not a number of entries", part)
		}
		*s = append(*s, n)
	}
	return nil
}
