package peers

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// foreignPEM and foreignDocument are the bundle of a trust domain that is not
// there.
const (
	foreignPEM = `-----BEGIN CERTIFICATE-----
MIIBbTCCAROgAwIBAgIBATAKBggqhkjOPQQDAjAOMQwwCgYDVQQKEwN0ZDEwIBcN
MjMxMTE0MjIxMzIwWhgPMjEwMDAxMDEwMDAwMDBaMA4xDDAKBgNVBAoTA3RkMTBZ
MBMGByqGSM49AgEGCCqGSM49AwEHA0IABEhffGSDsDiJQm5NkwkUdRhnMjwIz+rG
7+HE15SqCrgE5mdyaRNlqVU/lCD0/dypJ/n6Lmd4kXbBn/+/97ahrMKjYDBeMA4G
A1UdDwEB/wQEAwIBBjAPBgNVHRMBAf8EBTADAQH/MB0GA1UdDgQWBBTJwsPlb2xZ
ibQ/Fbs9YLtl/Qb/xjAcBgNVHREEFTAThhFzcGlmZmU6Ly90ZDEudGVzdDAKBggq
hkjOPQQDAgNIADBFAiEA444eBAxQ/6DEugXAzJFZuNIGI7nNN6D553MeQkD42YQC
IG4ZyUcMOKEgT8VWpFJ4HwKugO04eakHonoJDW7CrBWo
-----END CERTIFICATE-----
`
	foreignDocument = `{"keys":[{"crv":"P-256","kty":"EC","use":"x509-svid","x":"SF98ZIOwOIlCbk2TCRR1GGcyPAjP6sbv4cTXlKoKuAQ","x5c":["MIIBbTCCAROgAwIBAgIBATAKBggqhkjOPQQDAjAOMQwwCgYDVQQKEwN0ZDEwIBcNMjMxMTE0MjIxMzIwWhgPMjEwMDAxMDEwMDAwMDBaMA4xDDAKBgNVBAoTA3RkMTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABEhffGSDsDiJQm5NkwkUdRhnMjwIz+rG7+HE15SqCrgE5mdyaRNlqVU/lCD0/dypJ/n6Lmd4kXbBn/+/97ahrMKjYDBeMA4GA1UdDwEB/wQEAwIBBjAPBgNVHRMBAf8EBTADAQH/MB0GA1UdDgQWBBTJwsPlb2xZibQ/Fbs9YLtl/Qb/xjAcBgNVHREEFTAThhFzcGlmZmU6Ly90ZDEudGVzdDAKBggqhkjOPQQDAgNIADBFAiEA444eBAxQ/6DEugXAzJFZuNIGI7nNN6D553MeQkD42YQCIG4ZyUcMOKEgT8VWpFJ4HwKugO04eakHonoJDW7CrBWo"],"y":"5mdyaRNlqVU_lCD0_dypJ_n6Lmd4kXbBn_-_97ahrMI"},{"crv":"P-256","kid":"key-1","kty":"EC","use":"jwt-svid","x":"SF98ZIOwOIlCbk2TCRR1GGcyPAjP6sbv4cTXlKoKuAQ","y":"5mdyaRNlqVU_lCD0_dypJ_n6Lmd4kXbBn_-_97ahrMI"}],"spiffe_refresh_hint":60,"spiffe_sequence":7}`
)

// quoted is a text as JSON has it.
func quoted(text string) string {
	out, err := json.Marshal(text)
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// bundleSteps are about bundles.
var bundleSteps = concat(
	inJSON(
		step{args: "bundle show"},
		step{args: "bundle show -format pem"},
		step{args: "bundle show -format SPIFFE"},
		step{args: "bundle show -format ''"},
		step{args: "bundle show -format der"},
		step{args: "bundle count"},
		step{args: "bundle list"},
		step{args: "bundle list -format der"},
		step{args: "bundle list -id spiffe://td1.test"},
		step{args: "bundle list -id spiffe://example.org"},
		step{args: "bundle list -id 'no name'"},
		step{args: "bundle set"},
		step{args: "bundle set -id spiffe://td1.test"},
		step{args: "bundle set -id spiffe://td1.test -format der", stdin: foreignPEM},
		step{args: "bundle set -id spiffe://td1.test -path /nowhere"},
		step{args: "bundle set -id spiffe://td1.test", stdin: "no bundle"},
		step{args: "bundle set -id spiffe://td1.test", stdin: foreignDocument},
		step{args: "bundle set -id spiffe://td1.test -format spiffe", stdin: "no bundle"},
		step{args: "bundle set -id spiffe://td1.test -format spiffe", stdin: foreignPEM},
		step{args: "bundle set -id 'no name' -format spiffe", stdin: foreignDocument},
		step{args: "bundle set -id 'no name'", stdin: foreignPEM},
		step{args: "bundle set -id spiffe://example.org", stdin: foreignPEM},
		step{args: "bundle set -id spiffe://td1.test", stdin: foreignPEM},
		step{args: "bundle set -id td2.test -path /dev/stdin", stdin: foreignPEM},
		step{args: "bundle set -id spiffe://td2.test -format spiffe", stdin: foreignDocument},
		step{args: "bundle set -id spiffe://td3.test/path", stdin: foreignPEM},
		step{args: "bundle count"},
		step{args: "bundle list"},
		step{args: "bundle list -format spiffe"},
		step{args: "bundle list -id td1.test"},
		step{args: "bundle list -id spiffe://td2.test -format spiffe"},
		step{args: "entry create -parentID $A1 -spiffeID spiffe://example.org/fed -selector a:b -federatesWith td1.test"},
		step{args: "bundle delete"},
		step{args: "bundle delete -id spiffe://td1.test -mode gently"},
		step{args: "bundle delete -id 'no name'"},
		step{args: "bundle delete -id spiffe://example.org"},
		step{args: "bundle delete -id spiffe://nobody.test"},
		step{args: "bundle delete -id spiffe://td1.test"},
		step{args: "bundle delete -id spiffe://td1.test -mode restrict"},
	),
	[]step{
		{args: "bundle delete -id spiffe://td1.test -mode dissociate"},
		{args: "entry show -spiffeID spiffe://example.org/fed"},
		{args: "bundle delete -id spiffe://td2.test -mode '' -output json"},
		{args: "bundle set -id td1.test", stdin: foreignPEM},
		{args: "entry create -parentID $A1 -spiffeID spiffe://example.org/goes -selector a:b -federatesWith td1.test"},
		{args: "bundle delete -id td1.test -mode delete -output json"},
		{args: "entry show -spiffeID spiffe://example.org/goes"},
		{args: "bundle count"},
	},
)

// webRelationship are the flags that every relationship needs.
const webRelationship = " -bundleEndpointURL https://td1.test/bundle -bundleEndpointProfile https_web"

// federationSteps are about federation relationships.
var federationSteps = concat(
	inJSON(
		step{args: "federation list"},
		step{args: "federation show"},
		step{args: "federation show -trustDomain td1.test"},
		step{args: "federation show -trustDomain 'no name'"},
		step{args: "federation show -trustDomain example.org"},
		step{args: "federation create"},
		step{args: "federation create -trustDomain td1.test"},
		step{args: "federation create -trustDomain td1.test -bundleEndpointURL https://td1.test/bundle"},
		step{args: "federation create -trustDomain td1.test -bundleEndpointURL https://td1.test/bundle -bundleEndpointProfile ftp"},
		step{args: "federation create -trustDomain td1.test -bundleEndpointURL https://td1.test/bundle -bundleEndpointProfile https_spiffe"},
		step{args: "federation create -trustDomain td1.test -bundleEndpointURL https://td1.test/bundle -bundleEndpointProfile https_spiffe -endpointSpiffeID td1"},
		step{args: "federation create -trustDomain td1.test -bundleEndpointURL http://td1.test/bundle -bundleEndpointProfile https_web"},
		step{args: "federation create -trustDomain td1.test -bundleEndpointURL https://user:secret@td1.test/bundle -bundleEndpointProfile https_web"},
		step{args: "federation create -trustDomain example.org" + webRelationship},
		step{args: "federation create -trustDomain 'no name'" + webRelationship},
		step{args: "federation create -trustDomain td1.test -trustDomainBundlePath /nowhere" + webRelationship},
		step{args: "federation create -trustDomain td1.test -trustDomainBundlePath /dev/stdin" + webRelationship, stdin: "no bundle"},
		step{args: "federation create -trustDomain td1.test -trustDomainBundlePath /dev/stdin -trustDomainBundleFormat spiffe" + webRelationship, stdin: "no bundle"},
		step{args: "federation create -trustDomain td1.test -data /nowhere"},
		step{args: "federation create -data /nowhere"},
		step{args: "federation create -data -", stdin: "no JSON"},
		step{args: "federation create -data -", stdin: `{"federationRelationships": [{"trustDomain": "td9.test"}]}`},
		step{args: "federation create -data -", stdin: `{"federationRelationships": [{"trustDomain": "td9.test", "bundleEndpointURL": "https://td9.test", "bundleEndpointProfile": "https_web", "trustDomainBundle": "x"}]}`},
		step{args: "federation create -data -", stdin: `{"federationRelationships": [{"trustDomain": "td9.test", "bundleEndpointURL": "https://td9.test", "bundleEndpointProfile": "https_web", "trustDomainBundle": {}, "trustDomainBundleFormat": "pem"}]}`},
		step{args: "federation create -data -", stdin: `{}`},
	),
	[]step{
		{args: "federation create -trustDomain td1.test" + webRelationship},
		{args: "federation create -trustDomain td1.test" + webRelationship},
		{args: "federation create -output json -trustDomain td1.test" + webRelationship},
		{args: "federation create -trustDomain spiffe://td2.test -trustDomainBundlePath /dev/stdin -output json" + webRelationship, stdin: foreignPEM},
		{args: "federation create -trustDomain td3.test -bundleEndpointURL https://td3.test/b -bundleEndpointProfile https_spiffe -endpointSpiffeID spiffe://td3.test/endpoint " +
			"-trustDomainBundlePath /dev/stdin -trustDomainBundleFormat spiffe", stdin: foreignDocument},
		{args: "federation create -data -", stdin: `{"federationRelationships": [
			{"trustDomain": "td4.test", "bundleEndpointURL": "https://td4.test", "bundleEndpointProfile": "https_web", "trustDomainBundle": ` + quoted(foreignPEM) + `, "trustDomainBundleFormat": "pem"},
			{"trustDomain": "td1.test", "bundleEndpointURL": "https://td1.test", "bundleEndpointProfile": "https_web"},
			{"TrustDomain": "td5.test", "bundleEndpointURL": "https://td5.test", "bundleEndpointProfile": "https_spiffe", "endpointSPIFFEID": "spiffe://td5.test/e",
				"trustDomainBundle": ` + foreignDocument + `, "trustDomainBundleFormat": "spiffe", "other": 1}]}`},
		{args: "federation list"},
		{args: "federation list -output json"},
		{args: "federation show -trustDomain td2.test"},
		{args: "federation show -trustDomain spiffe://td5.test"},
		{args: "federation show -trustDomain td3.test -output json"},
		{args: "federation update -trustDomain td1.test -bundleEndpointURL https://td1.test/new -bundleEndpointProfile https_spiffe -endpointSpiffeID spiffe://td1.test/e"},
		{args: "federation update -trustDomain td2.test -output json" + webRelationship},
		{args: "federation update -trustDomain nobody.test" + webRelationship},
		{args: "federation update -trustDomain nobody.test -output json" + webRelationship},
		{args: "federation update"},
		{args: "federation update -data -", stdin: `{"federationRelationships": [{"trustDomain": "td4.test", "bundleEndpointURL": "https://td4.test/new", "bundleEndpointProfile": "https_web"}]}`},
		{args: "federation list"},
		{args: "federation refresh"},
		{args: "federation refresh -id nobody.test"},
		{args: "federation refresh -id nobody.test -output json"},
		{args: "federation refresh -id 'no name'"},
		{args: "federation delete"},
		{args: "federation delete -id nobody.test"},
		{args: "federation delete -id nobody.test -output json"},
		{args: "federation delete -id 'no name'"},
		{args: "federation delete -id td1.test"},
		{args: "federation delete -id spiffe://td2.test -output json"},
		{args: "federation list"},
		{args: "bundle list"},
	},
)

// authoritySteps are about the authorities that a server signs with. None of
// them changes which is active: IDs differ from server to server.
var authoritySteps = concat(
	inJSON(
		step{args: "localauthority x509 show"},
		step{args: "localauthority jwt show"},
		step{args: "localauthority x509 activate"},
		step{args: "localauthority jwt activate"},
		step{args: "localauthority x509 activate -authorityID none"},
		step{args: "localauthority jwt activate -authorityID none"},
		step{args: "localauthority x509 taint"},
		step{args: "localauthority jwt taint"},
		step{args: "localauthority x509 taint -authorityID none"},
		step{args: "localauthority jwt taint -authorityID none"},
		step{args: "localauthority x509 revoke"},
		step{args: "localauthority jwt revoke"},
		step{args: "localauthority x509 revoke -authorityID none"},
		step{args: "localauthority jwt revoke -authorityID none"},
		step{args: "upstreamauthority taint"},
		step{args: "upstreamauthority revoke"},
		step{args: "upstreamauthority taint -subjectKeyID none"},
		step{args: "upstreamauthority revoke -subjectKeyID none"},
	),
	[]step{
		{args: "localauthority x509 prepare"},
		{args: "localauthority jwt prepare -output json"},
		{args: "localauthority x509 show"},
		{args: "localauthority jwt show"},
		{args: "localauthority x509 show -output json"},
		{args: "localauthority jwt show -output json"},
	},
)

// innerSteps are about the server's log and its state.
var innerSteps = concat(
	inJSON(
		step{args: "logger get"},
		step{args: "logger set"},
		step{args: "logger set -level loud"},
		step{args: "logger set -level Warning"},
		step{args: "logger set -level panic"},
		step{args: "logger set -level fatal"},
		step{args: "logger set -level ERROR"},
		step{args: "logger set -level trace"},
		step{args: "logger set -level info"},
		step{args: "logger get"},
		step{args: "logger reset"},
		step{args: "debug getinfo"},
	),
)

// trustMoments are what differs from server to server.
var trustMoments = []struct {
	pattern *regexp.Regexp
	text    string
}{
	{regexp.MustCompile(`(Authority ID: |"authority_id":")[<>\w-]+`), "$1<ID>"},
	{regexp.MustCompile(`"key_id":"(<BYTES>|[A-Za-z0-9_-]{20,})"`), `"key_id":"<ID>"`},
	{regexp.MustCompile(`"(kid|x|y)": "(<BYTES>|[A-Za-z0-9_-]{20,})"`), `"$1": "<BYTES>"`},
	{regexp.MustCompile(`(Uptime: +)\w+`), "$1<TIME>"},
	{regexp.MustCompile(`"uptime":\d+`), `"uptime":<TIME>`},
	{regexp.MustCompile(`x509UniqueIdentifier=#\w+,?`), ""},
}

// trustSteps are the whole script, in an order.
var trustSteps = concat(bundleSteps, federationSteps, authoritySteps, innerSteps)

// TestCommandLineAboutTrustIsAsRecorded is TestCommandLineIsAsRecorded for them.
func TestCommandLineAboutTrustIsAsRecorded(t *testing.T) {
	t.Parallel()
	own := ours(t)
	term := newTerminal(t, own, own)
	var got strings.Builder
	for _, s := range trustSteps {
		got.WriteString(recorded("spire-server", s, steady(term.play(t, s))))
	}
	holdGolden(t, "cli_trust.golden", got.String())
}

// TestSameCommandLineAboutTrust is TestSameCommandLine for bundles, federation,
// authorities, the log and the state of the server.
func TestSameCommandLineAboutTrust(t *testing.T) {
	t.Parallel()
	foreign := spire(t)
	own := ours(t)
	for _, server := range []programs{own, foreign} {
		t.Run("server of "+server.name, func(t *testing.T) {
			t.Parallel()
			theirs, mine := newTerminal(t, foreign, server), newTerminal(t, own, server)
			for i, s := range trustSteps {
				want, got := steady(theirs.play(t, s)), steady(mine.play(t, s))
				t.Run(fmt.Sprintf("%03d %s", i, s.args), func(t *testing.T) {
					diff := cmp.Diff(want, got, cmp.AllowUnexported(output{}))
					switch {
					case diff != "" && s.differs == "":
						t.Errorf("SPIRE's command line says -, ours +:\n%s", diff)
					case diff == "" && s.differs != "":
						t.Errorf("the outputs are the same now; take away: %s", s.differs)
					}
				})
			}
		})
	}
}

// steady is an output without what differs from server to server.
func steady(o output) output {
	for _, m := range trustMoments {
		o.stdout = m.pattern.ReplaceAllString(o.stdout, m.text)
	}
	return o
}
