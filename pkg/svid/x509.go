package svid

import (
	"crypto"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Kind says whom an X509-SVID is for. It decides which paths its SPIFFE ID may
// have, so that no workload can be given the name of an agent or a server.
type Kind int

// Kinds of X509-SVIDs.
const (
	// Workload IDs lie outside /spire, which is reserved.
	Workload Kind = iota + 1
	// Agent IDs lie under /spire/agent/.
	Agent
	// Server is /spire/server.
	Server
)

// String names the kind for logs.
func (k Kind) String() string {
	switch k {
	case Workload:
		return "workload"
	case Agent:
		return "agent"
	case Server:
		return "server"
	default:
		return fmt.Sprintf("svid.Kind(%d)", int(k))
	}
}

// Limits of a request.
const (
	// MaxDNSNames is how many DNS names one X509-SVID may have.
	MaxDNSNames = 256
	// maxID bounds a SPIFFE ID in bytes (SPIFFE-ID, 2.3).
	maxID = 2048
	// maxCommonName is ub-common-name (RFC 5280, appendix A.1).
	maxCommonName = 64
	// maxTTL keeps arithmetic on times far from its limits.
	maxTTL = 100 * 365 * 24 * time.Hour
)

// X509Request is what an X509-SVID shall say.
type X509Request struct {
	Kind Kind
	// ID becomes the only URI SAN.
	ID spiffeid.ID
	// PublicKey is EC (P-256, P-384, P-521) or RSA (2048 to 4096 bits).
	PublicKey crypto.PublicKey
	// DNSNames are for workloads only. The first also becomes the subject's
	// common name, when it fits.
	DNSNames []string
	// TTL counts from now. The certificate never outlives its authority; what
	// was cut off is told by [X509SVID].Capped. Package ca puts the default of
	// the kind in the place of zero.
	TTL time.Duration

	// EntryID and AgentID say why and for whom it is issued. They are kept in
	// records, not in the certificate.
	EntryID string
	AgentID spiffeid.ID
}

// X509SVID is an issued X509-SVID.
type X509SVID struct {
	// Chain is the leaf, then intermediates, each DER. The root is not in it.
	Chain [][]byte
	// Serial is the serial number in decimal.
	Serial string
	// NotBefore and NotAfter are UTC, whole seconds.
	NotBefore, NotAfter time.Time
	// Capped says that the TTL asked for reached beyond the authority's end.
	Capped bool
}

// check holds the request against the profile (X509-SVID, 2 to 4).
func (r *X509Request) check(td spiffeid.TrustDomain) error {
	if err := checkID(td, r.ID); err != nil {
		return err
	}
	if err := checkPath(r.Kind, r.ID.Path()); err != nil {
		return err
	}
	if err := checkTTL(r.TTL); err != nil {
		return err
	}
	if len(r.DNSNames) == 0 {
		return nil
	}
	if r.Kind != Workload {
		return fmt.Errorf("%w: DNS names: an X509-SVID of kind %s has none", ErrRefused, r.Kind)
	}
	if len(r.DNSNames) > MaxDNSNames {
		return fmt.Errorf("%w: DNS names: %d are more than %d", ErrRefused, len(r.DNSNames), MaxDNSNames)
	}
	for i, name := range r.DNSNames {
		if err := ValidateDNSName(name); err != nil {
			return fmt.Errorf("%w: DNS name %q: %w", ErrRefused, name, err)
		}
		if slices.Contains(r.DNSNames[:i], name) {
			return fmt.Errorf("%w: DNS name %q is given twice", ErrRefused, name)
		}
	}
	return nil
}

func checkID(td spiffeid.TrustDomain, id spiffeid.ID) error {
	switch {
	case id.IsZero():
		return fmt.Errorf("%w: SPIFFE ID is not set", ErrRefused)
	case !id.MemberOf(td):
		return fmt.Errorf("%w: SPIFFE ID %q is not a member of trust domain %q", ErrRefused, id, td.Name())
	case id.Path() == "":
		return fmt.Errorf("%w: SPIFFE ID %q has no path", ErrRefused, id)
	case len(id.String()) > maxID:
		return fmt.Errorf("%w: SPIFFE ID of %d bytes is longer than %d", ErrRefused, len(id.String()), maxID)
	}
	return nil
}

func checkPath(kind Kind, path string) error {
	const reserved, server, agents = "/spire", "/spire/server", "/spire/agent/"
	ok := false
	switch kind {
	case Workload:
		ok = path != reserved && !strings.HasPrefix(path, reserved+"/")
	case Agent:
		ok = strings.HasPrefix(path, agents)
	case Server:
		ok = path == server
	default:
		return fmt.Errorf("%w: kind is not set", ErrRefused)
	}
	if !ok {
		return fmt.Errorf("%w: SPIFFE ID path %q is not one of kind %s (%s is reserved: agents are under %s, the server is %s)",
			ErrRefused, path, kind, reserved, agents, server)
	}
	return nil
}

func checkTTL(ttl time.Duration) error {
	if ttl <= 0 || ttl > maxTTL {
		return fmt.Errorf("%w: TTL %s is not between 1ns and 100 years", ErrRefused, ttl)
	}
	return nil
}

// X509Approval is an X509-SVID that passed its profile and is not signed yet.
type X509Approval struct {
	approval
	issuer *X509Issuer
	svid   X509SVID
}

// Seal attaches the signature of what Take gave out and returns the X509-SVID.
// It works once.
func (a *X509Approval) Seal(signature []byte) (*X509SVID, error) {
	if err := a.seal(); err != nil {
		return nil, err
	}
	s := a.svid
	s.Chain = append([][]byte{assemble(a.tbs, a.issuer.sigAlg, signature)}, a.issuer.intermediates...)
	return &s, nil
}

// Approve holds the request against the profile and decides every byte that
// will be signed. random becomes the serial number: 126 bits of it, in a form
// that is always positive and 16 bytes long. It returns ErrRefused, or
// ErrExpired when the authority's own validity does not include now.
func (i *X509Issuer) Approve(now time.Time, random [16]byte, req X509Request) (*X509Approval, error) {
	if err := req.check(i.trustDomain); err != nil {
		return nil, err
	}
	key, err := encodeKey(req.PublicKey)
	if err != nil {
		return nil, err
	}
	if now.Before(i.notBefore) || !now.Before(i.notAfter) {
		return nil, fmt.Errorf("X.509 %w: now %s, valid from %s to %s", ErrExpired,
			now.UTC().Format(time.RFC3339), i.notBefore.Format(time.RFC3339), i.notAfter.Format(time.RFC3339))
	}
	a := &X509Approval{issuer: i}
	a.svid.NotBefore = now.Add(-Backdate).UTC().Truncate(time.Second)
	if a.svid.NotBefore.Before(i.notBefore) {
		a.svid.NotBefore = i.notBefore
	}
	a.svid.NotAfter = now.Add(req.TTL).UTC().Truncate(time.Second)
	if a.svid.NotAfter.After(i.notAfter) {
		a.svid.NotAfter, a.svid.Capped = i.notAfter, true
	}
	random[0] = random[0]&0x7f | 0x40
	a.svid.Serial = new(big.Int).SetBytes(random[:]).String()
	a.hash = i.hash
	a.tbs = i.encode(&a.svid, random[:], &req, key)
	return a, nil
}
