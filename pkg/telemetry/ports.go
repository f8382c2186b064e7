package telemetry

import (
	"net/netip"
	"strings"
)

// Endpoint is where a section of the configuration file wants to listen, and the
// file's key of the port.
type Endpoint struct {
	Host, Port, Key string
}

// Endpoint is where the health listener listens; the zero value if it does not.
func (c HealthConfig) Endpoint() Endpoint {
	if !c.ListenerEnabled {
		return Endpoint{}
	}
	return Endpoint{c.BindAddress, c.BindPort, "health_checks.bind_port"}
}

// CheckPorts reports each address that one before it takes: a port that the
// program itself has in use is found before it is run. An address with no port,
// or with port 0, takes nothing. Host names but localhost are not looked up.
func CheckPorts(report func(key, format string, args ...any), all ...Endpoint) {
	for i, a := range all {
		for _, before := range all[:i] {
			if a.Port != "" && a.Port != "0" && a.Port == before.Port && overlap(a.Host, before.Host) {
				report(a.Key, "port %s is that of %s too; choose another", a.Port, before.Key)
				break
			}
		}
	}
}

// overlap says whether one of two hosts is the other, or has it among others.
func overlap(a, b string) bool {
	a, b = plainHost(a), plainHost(b)
	return a == b || covers(a, b) || covers(b, a)
}

// plainHost is a host as it is compared: all of this machine is the empty one.
func plainHost(host string) string {
	host = strings.ToLower(strings.Trim(host, "[]"))
	if host == "localhost" {
		return "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return host
	case ip == netip.IPv6Unspecified(): // Go listens there for IPv4, too.
		return ""
	}
	return ip.Unmap().String()
}

// covers says whether all is every address, or every IPv4 address and host one.
func covers(all, host string) bool {
	if all != netip.IPv4Unspecified().String() {
		return all == ""
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Is4()
}
