package registry

import (
	"math"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/svid"
)

// Limits of what a client may register.
const (
	maxID   = 255
	maxHint = 1024
	// maxSPIFFEID (SPIFFE-ID, 2.3) and maxDNSNames are those of an SVID: an
	// entry beyond them could never be issued.
	maxSPIFFEID = 2048
	maxDNSNames = 256
	// maxExpiry is the last second of the year 9999. Times much later do not
	// compare as later.
	maxExpiry = 253402300799
	// maxRecord bounds one encoded entry or agent, so that it fits into an
	// Update together with its bookkeeping.
	maxRecord = 512 << 10
	// maxAgentPath keeps an agent's key below store.MaxKey.
	maxAgentPath = 1000
)

const (
	reservedPath = "/spire"
	serverPath   = "/spire/server"
	agentPrefix  = "/spire/agent/"
)

// ServerID is the SPIFFE ID of the servers of a trust domain. An entry with
// this parent is a node alias.
func ServerID(td spiffeid.TrustDomain) spiffeid.ID {
	id, err := spiffeid.FromPath(td, serverPath)
	if err != nil {
		return spiffeid.ID{} // Not reachable with a trust domain that was parsed.
	}
	return id
}

// IsAlias says whether the entry maps nodes to a SPIFFE ID rather than a
// workload: its parent is the server.
func (e *Entry) IsAlias() bool { return e.ParentID.Path() == serverPath }

// Validate holds an entry against every rule that needs no other record. An
// empty ID is allowed: CreateEntries makes one. The error is an
// [InvalidError].
func (e *Entry) Validate(td spiffeid.TrustDomain) error {
	if err := checkEntryID(e.ID); err != nil {
		return err
	}
	if err := checkIdentity(td, e); err != nil {
		return err
	}
	if err := checkEntrySelectors(e); err != nil {
		return err
	}
	if err := checkTTL("x509_svid_ttl", e.X509SVIDTTL); err != nil {
		return err
	}
	if err := checkTTL("jwt_svid_ttl", e.JWTSVIDTTL); err != nil {
		return err
	}
	for _, other := range e.FederatesWith {
		if other.IsZero() {
			return invalid("federates_with", "trust domain name is empty")
		}
		if other == td {
			return invalid("federates_with", "%q is this trust domain; an entry federates with others", td.Name())
		}
	}
	if len(e.DNSNames) > maxDNSNames {
		return invalid("dns_names", "are %d, at most %d are allowed", len(e.DNSNames), maxDNSNames)
	}
	for _, name := range e.DNSNames {
		if err := svid.ValidateDNSName(name); err != nil {
			return invalid("dns_names", "%q: %v", name, err)
		}
	}
	if len(e.Hint) > maxHint {
		return invalid("hint", "is %d bytes long, at most %d are allowed", len(e.Hint), maxHint)
	}
	return checkExpiry(e.ExpiresAt)
}

func checkExpiry(at time.Time) error {
	switch {
	case at.IsZero():
		return nil
	case at.Unix() <= 0:
		return invalid("expires_at", "must be a time after 1970")
	case at.Unix() > maxExpiry:
		return invalid("expires_at", "must be a time before the year 10000; 0 is for an entry that does not expire")
	}
	return nil
}

// checkEntryID keeps SPIRE's alphabet and length.
func checkEntryID(id string) error {
	if len(id) > maxID {
		return invalid("id", "is %d bytes long, at most %d are allowed", len(id), maxID)
	}
	for _, c := range []byte(id) {
		if !isIDChar(c) {
			return invalid("id", "only letters, digits, '-', '_' and '.' are allowed")
		}
	}
	return nil
}

func isIDChar(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return c == '-' || c == '_' || c == '.'
}

func checkIdentity(td spiffeid.TrustDomain, e *Entry) error {
	if err := checkMember("spiffe_id", td, e.SPIFFEID); err != nil {
		return err
	}
	if path := e.SPIFFEID.Path(); path == reservedPath || strings.HasPrefix(path, reservedPath+"/") {
		return invalid("spiffe_id", "%q: paths under %s are reserved for servers and agents", e.SPIFFEID, reservedPath)
	}
	return checkMember("parent_id", td, e.ParentID)
}

func checkMember(field string, td spiffeid.TrustDomain, id spiffeid.ID) error {
	switch {
	case id.IsZero():
		return invalid(field, "is required")
	case !id.MemberOf(td):
		return invalid(field, "%q is not in the trust domain %q of this server", id, td.Name())
	case id.Path() == "":
		return invalid(field, "%q has no path", id)
	case len(id.String()) > maxSPIFFEID:
		return invalid(field, "is %d bytes long, at most %d are allowed", len(id.String()), maxSPIFFEID)
	}
	return nil
}

func checkEntrySelectors(e *Entry) error {
	if len(e.Selectors) == 0 {
		return invalid("selectors", "at least one selector is required")
	}
	if err := checkSelectors(e.Selectors); err != nil {
		return err
	}
	if !e.StoreSVID {
		return nil
	}
	for _, s := range e.Selectors {
		if s.Type != e.Selectors[0].Type {
			return invalid("selectors", "must all be of one type when store_svid is set")
		}
	}
	return nil
}

func checkSelectors(s attest.Selectors) error {
	if err := s.Validate(); err != nil {
		return invalid("selectors", "%v", err)
	}
	if !isSet(s) {
		return invalid("selectors", "are not a sorted set")
	}
	return nil
}

func isSet(s attest.Selectors) bool {
	for i := 1; i < len(s); i++ {
		if s[i-1].Compare(s[i]) >= 0 {
			return false
		}
	}
	return true
}

func checkTTL(field string, ttl time.Duration) error {
	switch {
	case ttl < 0:
		return invalid(field, "cannot be negative")
	case ttl%time.Second != 0:
		return invalid(field, "must be whole seconds")
	case ttl/time.Second > math.MaxInt32:
		return invalid(field, "is too large")
	}
	return nil
}

// Validate holds an agent against every rule that needs no other record.
func (a *Agent) Validate(td spiffeid.TrustDomain) error {
	if err := checkMember("id", td, a.ID); err != nil {
		return err
	}
	path := a.ID.Path()
	if rest, ok := strings.CutPrefix(path, agentPrefix); !ok || !strings.Contains(rest, "/") {
		return invalid("id", "%q is not an agent's: its path must be %s<method>/…", a.ID, agentPrefix)
	}
	if len(path) > maxAgentPath {
		return invalid("id", "its path is %d bytes long, at most %d are allowed", len(path), maxAgentPath)
	}
	if a.AttestationType == "" {
		return invalid("attestation_type", "is required")
	}
	return checkSelectors(a.Selectors)
}
