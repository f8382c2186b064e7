package peers

import "strings"

const (
	parent = "-parentID spiffe://example.org/host"
	minted = " -spiffeID spiffe://example.org/"
)

// inJSON are steps, each also with -output json behind it.
func inJSON(steps ...step) []step {
	out := make([]step, 0, 2*len(steps))
	for _, s := range steps {
		j := s
		j.args += " -output json"
		out = append(out, s, j)
	}
	return out
}

// entrySteps are about entries, in an order: what one makes the next ones see.
var entrySteps = concat(
	inJSON(step{args: "entry show"}, step{args: "entry count"}, step{args: "entry show -entryID nobody"}),

	// Create: what the flags lack, in the order in which it is said.
	inJSON(
		step{args: "entry create"},
		step{args: "entry create -selector unix:uid:1"},
		step{args: "entry create -selector unix:uid:1 -node -federatesWith other.test"},
		step{args: "entry create -selector unix:uid:1 " + parent},
		step{args: "entry create -selector unix:uid:1 -node"},
		step{args: "entry create -selector unix:uid:1 " + parent + minted + "x -x509SVIDTTL -1"},
		step{args: "entry create -selector unix:uid:1 " + parent + minted + "x -jwtSVIDTTL -1"},
		step{args: "entry create -selector unix:uid:1 " + parent + minted + "x -x509SVIDTTL 2147483648"},
		step{args: "entry create -selector unix:uid:1 " + parent + minted + "x -jwtSVIDTTL 99999999999"},
		step{args: "entry create -selector unix:uid:1 -parentID host -spiffeID web"},
		step{args: "entry create -selector unix:uid:1 -parentID host -spiffeID spiffe://example.org/web"},
		step{args: "entry create -selector unix:uid:1 " + parent + " -spiffeID spiffe://example.org/web/"},
		step{args: "entry create -selector unix:uid:1 " + parent + " -spiffeID spiffe://EXAMPLE.org/web"},
		step{args: "entry create -selector unix:uid:1 " + parent + " -spiffeID spiffe://example.org//web"},
		step{args: "entry create -selector unix " + parent + minted + "x"},
		step{args: "entry create -selector unix:uid:1 -selector '' " + parent + minted + "x"},
	),
	// What only the server refuses.
	inJSON(
		step{args: "entry create -selector :uid " + parent + minted + "x"},
		step{args: "entry create -selector unix: " + parent + minted + "x"},
		step{args: "entry create -selector unix:uid:1 " + parent + " -spiffeID spiffe://elsewhere.test/x"},
		step{args: "entry create -selector unix:uid:1 -parentID spiffe://elsewhere.test/host" + minted + "x"},
		step{args: "entry create -selector unix:uid:1 " + parent + " -spiffeID spiffe://example.org"},
		step{args: "entry create -selector unix:uid:1 " + parent + minted + "x -dns no_such..name"},
		step{args: "entry create -selector unix:uid:1 " + parent + minted + "x -federatesWith nobody.test"},
		step{args: "entry create -selector unix:uid:1 " + parent + minted + "x -federatesWith 'no domain'"},
		step{args: "entry create -selector unix:uid:1 " + parent + minted + "x -entryID 'a b'"},
	),

	// Create, show, count.
	[]step{
		{args: "entry create -entryID web " + parent + minted + "web -selector unix:uid:1 -selector unix:user:root -x509SVIDTTL 600 -jwtSVIDTTL 60 -dns web.example.org -dns www.example.org -hint first"},
		{args: "entry create -entryID down " + parent + minted + "down -selector unix:uid:2 -downstream -admin -storeSVID=false -entryExpiry 4102444800"},
		{args: "entry create -entryID pool -node -spiffeID spiffe://example.org/pool -selector x509pop:cn:node"},
		{args: "entry create -output json -entryID all " + parent + minted + "all -selector docker:label:a:b -x509SVIDTTL 0x10 -jwtSVIDTTL 0b11 -admin -hint '<&> ü' -disableX509SVIDPrefetch -jwtSVIDIncludeJTI"},
		{args: "entry create -entryID jti " + parent + minted + "jti -selector unix:uid:3 -jwtSVIDIncludeJTI -storeSVID"},
		{args: "entry create --entryID=past --parentID=$A1 --spiffeID=spiffe://example.org/past --selector=unix:uid:4 --entryExpiry=5"},
		{args: "entry create " + parent + minted + "random -selector unix:uid:5"},
		{args: "entry create " + parent + minted + "random -selector unix:uid:6 -output json"},
		{args: "entry create -entryID web2 " + parent + minted + "web -selector unix:user:root -selector unix:uid:1"},
		{args: "entry create " + parent + minted + "web -selector unix:user:root -selector unix:uid:1 -output json"},
		{args: "entry create -entryID web " + parent + minted + "web3 -selector unix:uid:1"},
	},
	inJSON(
		step{args: "entry show"},
		step{args: "entry show -downstream"},
		step{args: "entry show -downstream=false"},
		step{args: "entry show -entryID web"},
		step{args: "entry show -entryID down"},
		step{args: "entry show -entryID all"},
		step{args: "entry show -entryID past"},
		step{args: "entry show -entryID web -hint other"},
		step{args: "entry show -entryID web -spiffeID spiffe://example.org/web"},
		step{args: "entry show -entryID web -parentID x"},
		step{args: "entry show -entryID web -selector a:b"},
		step{args: "entry show " + parent},
		step{args: "entry show -parentID $A1"},
		step{args: "entry show -spiffeID spiffe://example.org/web"},
		step{args: "entry show -spiffeID spiffe://example.org/random"},
		step{args: "entry show -spiffeID spiffe://elsewhere.test/x"},
		step{args: "entry show -spiffeID web"},
		step{args: "entry show -parentID web"},
		step{args: "entry show -hint first"},
		step{args: "entry show -selector unix:uid:1"},
		step{args: "entry show -selector unix"},
		step{args: "entry show -selector unix:"},
		step{args: "entry show -selector unix:uid:1 -matchSelectorsOn exact"},
		step{args: "entry show -selector unix:uid:1 -matchSelectorsOn any"},
		step{args: "entry show -selector unix:uid:1 -selector unix:user:root -selector unix:x:y -matchSelectorsOn subset"},
		step{args: "entry show -selector unix:uid:1 -selector unix:user:root -matchSelectorsOn superset"},
		step{args: "entry show -selector unix:uid:1 -matchSelectorsOn SUPERSET"},
		step{args: "entry show -selector unix:uid:1 -matchSelectorsOn nearly"},
		step{args: "entry show -matchSelectorsOn nearly"},
		step{args: "entry show -federatesWith other.test"},
		step{args: "entry show -federatesWith spiffe://other.test -matchFederatesWithOn exact"},
		step{args: "entry show -federatesWith other.test -matchFederatesWithOn nearly"},
		step{args: "entry show -federatesWith 'no domain'"},
		step{args: "entry count"},
		step{args: "entry count -downstream"},
		step{args: "entry count " + parent},
		step{args: "entry count -parentID x"},
		step{args: "entry count -spiffeID spiffe://example.org/web"},
		step{args: "entry count -spiffeID x"},
		step{args: "entry count -hint first"},
		step{args: "entry count -selector unix:uid:1"},
		step{args: "entry count -selector unix"},
		step{args: "entry count -selector unix:uid:1 -matchSelectorsOn nearly"},
		step{args: "entry count -federatesWith other.test -matchFederatesWithOn any"},
		step{args: "entry count -federatesWith other.test -matchFederatesWithOn nearly"},
	),

	// Update.
	inJSON(
		step{args: "entry update"},
		step{args: "entry update -entryID web"},
		step{args: "entry update -entryID web -selector unix:uid:1"},
		step{args: "entry update -entryID web -selector unix:uid:1 " + parent},
		step{args: "entry update -entryID web -selector unix:uid:1 " + parent + minted + "x -x509SVIDTTL -1"},
		step{args: "entry update -entryID web -selector unix:uid:1 " + parent + minted + "x -jwtSVIDTTL -1"},
		step{args: "entry update -entryID web -selector unix:uid:1 " + parent + minted + "x -x509SVIDTTL 99999999999"},
		step{args: "entry update -entryID web -selector unix:uid:1 -parentID x -spiffeID y"},
		step{args: "entry update -entryID web -selector unix " + parent + minted + "web"},
		step{args: "entry update -entryID nobody -selector unix:uid:9 " + parent + minted + "x"},
		step{args: "entry update -entryID nobody -selector unix:uid:9 " + parent + minted + "x -jwtSVIDIncludeJTI"},
		step{args: "entry update -entryID web -selector :x " + parent + minted + "web"},
		step{args: "entry update -entryID web " + parent + minted + "web -selector unix:uid:1 -admin -hint second -dns a.example.org -x509SVIDTTL 5 -jwtSVIDTTL 6 -entryExpiry 4102444800 -downstream -storeSVID"},
		step{args: "entry update -entryID web " + parent + minted + "web -selector unix:uid:1"},
		step{args: "entry update -entryID all " + parent + minted + "all -selector docker:label:a:b -disableX509SVIDPrefetch"},
		step{args: "entry update -entryID jti " + parent + minted + "jti -selector unix:uid:3"},
		step{args: "entry update -entryID jti " + parent + minted + "jti -selector unix:uid:3 -disableX509SVIDPrefetch"},
		step{args: "entry update -entryID jti " + parent + minted + "jti -selector unix:uid:3 -node", usage: true},
	),
	[]step{
		{args: "entry update -entryID jti " + parent + minted + "jti -selector unix:uid:3 -jwtSVIDIncludeJTI=false",
			differs: "SPIRE reads =false as true here; ours as false"},
		{args: "entry update -entryID jti " + parent + minted + "jti -selector unix:uid:3 -jwtSVIDIncludeJTI"},
	},

	// Files.
	inJSON(
		step{args: "entry create -data /nowhere/entries.json"},
		step{args: "entry create -data $DIR"},
		step{args: "entry create -data -", stdin: dataFile},
		step{args: "entry create -data -", stdin: strings.ReplaceAll(dataFile, `"hint"`, `"note": {}, "Hint"`)},
		step{args: "entry create -data - -spiffeID ignored", stdin: `{}`},
		step{args: "entry create -data -", stdin: `{"entries": []}`},
		step{args: "entry create -data -", stdin: `{"entries": [null]}`},
		step{args: "entry create -data -", stdin: `{"entries": [{"parent_id": "x"}]}`},
		step{args: "entry create -data -", stdin: `{"entries": [{"spiffe_id": "spiffe://example.org/x", "parent_id": "x"}]}`},
		step{args: "entry create -data -", stdin: `{"entries": [{"spiffe_id": "spiffe://example.org/x", "parent_id": "spiffe://example.org/x", "federates_with": ["no domain"]}]}`},
		step{args: "entry create -data -", stdin: ``},
		step{args: "entry create -data -", stdin: `entries`},
		step{args: "entry update -data -", stdin: strings.ReplaceAll(dataFile, `"hint": "`, `"hint": "new `)},
		step{args: "entry update -data -", stdin: `{"entries": [{"entry_id": "nobody", "spiffe_id": "spiffe://example.org/x", "parent_id": "spiffe://example.org/x", "selectors": [{"type": "a", "value": "b"}]}]}`},
	),
	[]step{
		{args: "entry create -data -", stdin: `{"entries": [{"x509_svid_ttl": "soon"}]}`,
			differs: "what is wrong with JSON is said by our decoder's names"},
		{args: "entry show"},
		{args: "entry show -output json"},
	},

	// Delete.
	inJSON(
		step{args: "entry delete"},
		step{args: "entry delete -entryID nobody"},
		step{args: "entry delete -file /nowhere/ids.json"},
		step{args: "entry delete -file -", stdin: `["a"]`, differs: "what is wrong with JSON is said by our decoder's names"},
		step{args: "entry delete -file -", stdin: ``},
		step{args: "entry delete -file -", stdin: `{}`},
		step{args: "entry delete -file - -entryID ignored", stdin: `{"ids": ["nobody"]}`},
	),
	[]step{
		{args: "entry delete -entryID web"},
		{args: "entry delete -output json -entryID down"},
		{args: "entry delete -file -", stdin: `{"ids": ["all", "nobody"]}`},
		{args: "entry delete -file -", stdin: `{"ids": ["pool", "jti", "past"]}`},
		{args: "entry count"},
	},
)

const dataFile = `{
	"entries": [
		{
			"entry_id": "file1",
			"selectors": [{"type": "unix", "value": "uid:100"}, {"type": "unix", "value": "gid:100"}],
			"parent_id": "spiffe://example.org/host",
			"spiffe_id": "spiffe://example.org/file1",
			"x509_svid_ttl": 20,
			"jwt_svid_ttl": 30,
			"hint": "one",
			"admin": true,
			"dns_names": ["file1.example.org"],
			"entryExpiry": 4102444800,
			"additional_attributes": {"jwt_svid_include_jti": true}
		},
		{
			"entry_id": "file2",
			"selectors": [{"type": "unix", "value": "uid:101"}],
			"spiffe_id": "spiffe://example.org/file2",
			"parent_id": "spiffe://example.org/host",
			"downstream": true,
			"store_svid": false,
			"federates_with": [],
			"revision_number": 7,
			"created_at": 5
		}
	]
}`

func concat(lists ...[]step) []step {
	var out []step
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}
