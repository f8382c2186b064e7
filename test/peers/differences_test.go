package peers

// Reasons that several calls share.
const (
	clientsMistake = "what the client got wrong is InvalidArgument, not Internal"
	notAnyToken    = "a page token is the key to go on after; one that was never given out is where it would be"
	sequence       = "the sequence number counts each change of the bundle; the first two authorities are two"
	later          = "comes with nested servers"
	laterWIT       = "comes with WIT-SVIDs"
	badExpiry      = "a time that cannot be read is refused; SPIRE filters nothing then, which a purge would not want"
	unknownMethod  = "who may call a method is decided before whether the listener has it: PermissionDenied, not Unimplemented"
)

// differences are the calls whose answers are not SPIRE's, and why. Each is also
// in docs/spire-differences.md. Not in it are the words of refusals, which are
// not compared: see plain.words.
var differences = map[string]string{
	"entry: create with an ID that is taken":               "the entry that has the ID comes with the status, as a similar one does",
	"entry: create with the same selector twice":           "a set has each selector once; SPIRE's database refuses it as AlreadyExists",
	"entry: get one that has expired":                      "an entry ends at expires_at, not at the next pruning",
	"entry: create with a bad DNS name":                    "a name that cannot be in a certificate is refused when it is registered",
	"entry: create federated with an unknown trust domain": clientsMistake,
	"entry: list by a match that is none":                  clientsMistake,
	"entry: list with a bad page token":                    notAnyToken,
	"entry: update none":                                   "the message says what was not found",
	"entry: update without ID":                             "no ID is InvalidArgument, as for get and delete",
	"entry: update to what another is":                     "two entries are never similar, also after an update",
	"agent: list by expiry":                                badExpiry,
	"agent: list by bad expiry":                            badExpiry,
	"agent: count by bad expiry":                           badExpiry,
	"agent: list by no selectors":                          clientsMistake,
	"agent: list with a bad page token":                    clientsMistake,
	"agent: token that is taken":                           "what is there already is AlreadyExists, not Internal",
	"svid: mint X.509 with a subject":                      "the server sets the subject; nothing of a CSR but its key, ID and DNS names goes into an SVID (S19, S24)",
	"svid: mint X.509 with a negative TTL":                 "a negative TTL is refused, not ignored",
	"svid: mint JWT with an empty audience":                clientsMistake,
	"svid: new X.509, an admin":                            "the reasons of PermissionDeniedDetails are for agents: to tell an admin that it is not attested helps nobody",
	"svid: new WIT":                                        laterWIT,
	"svid: downstream CA":                                  later,
	"svid: downstream CA with a TTL":                       later,
	"svid: downstream CA without CSR":                      later,
	"bundle: get":                                          sequence,
	"bundle: get at the end":                               sequence,
	"bundle: get after the authorities":                    sequence,
	"bundle: list with a bad page token":                   notAnyToken,
	"bundle: publish a WIT key":                            "an authority for WIT-SVIDs is kept; SPIRE wants a feature flag for that",
	"federation: create again":                             "what is there already is AlreadyExists, not Internal",
	"federation: update none":                              "what is not there is NotFound, not Internal",
	"federation: update with a mask":                       "a mask without the profile leaves the profile as it is; SPIRE wants it sent along",
	"debug: over TCP":                                      unknownMethod,
	"logger: over TCP":                                     unknownMethod,
	"health: of a service":                                 "a service that is not known is NotFound, as grpc.health.v1 says",
}
