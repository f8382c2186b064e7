package main

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// runningServers are servers that somebody else started, for a fleet. They trust the
// authorities in the folder of the nodes (authority-N.pem) by ca_bundle_paths of
// x509pop, have no rate limits, and profiling_enabled.
type runningServers struct{ addrs, admin, pids, profiling string }

func (r runningServers) named() bool { return r.addrs != "" }

// attach makes a cluster of them. Stopping it stops none of them.
func (r runningServers) attach(b *bench, spec clusterSpec) (*cluster, error) {
	c := &cluster{b: b, spec: spec, foreign: true}
	pids, ports := split(r.pids), split(r.profiling)
	for i, addr := range split(r.addrs) {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, fmt.Errorf("-at: %w", err)
		}
		m := &member{host: host}
		if m.port, err = strconv.Atoi(port); err != nil {
			return nil, fmt.Errorf("-at: %q is not a port", port)
		}
		if i >= len(pids) || i >= len(ports) {
			return nil, errors.New("-pids and -profiling: name one for each server of -at")
		}
		pid, err := strconv.Atoi(pids[i])
		if err != nil {
			return nil, fmt.Errorf("-pids: %q is not a process ID", pids[i])
		}
		m.process.Store(int64(pid))
		if m.profiling, err = strconv.Atoi(ports[i]); err != nil {
			return nil, fmt.Errorf("-profiling: %q is not a port", ports[i])
		}
		c.members = append(c.members, m)
	}
	for range adminConns {
		conn, err := dialUnix(r.admin)
		if err != nil {
			return nil, err
		}
		c.members[0].admins = append(c.members[0].admins, conn)
	}
	return c, nil
}

func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}
