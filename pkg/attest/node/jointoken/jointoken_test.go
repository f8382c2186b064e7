package jointoken

import (
	"errors"
	"strings"
	"testing"

	"github.com/credence-id/credence/pkg/attest/node"
	"github.com/credence-id/credence/pkg/attest/node/nodetest"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const uuid = "5d6f2b1e-5a0c-4a39-9f0b-1c2d3e4f5a6b"

var td = spiffeid.RequireTrustDomainFromString("example.org")

// notSegments are tokens that would be something else as a part of a path.
var notSegments = map[string]string{
	"empty":           "",
	"dot":             ".",
	"dots":            "..",
	"slash":           "/",
	"other agent":     "a/../../x509pop/b",
	"below":           uuid + "/x",
	"slash before":    "/" + uuid,
	"slash after":     uuid + "/",
	"escaped dots":    "%2e%2e",
	"escaped capital": "%2E",
	"escaped slash":   "a%2fb",
	"escaped letter":  "%61",
	"back slash":      `a\b`,
	"query":           "a?b",
	"fragment":        "a#b",
	"user":            "a@b",
	"port":            "a:b",
	"blank":           "a b",
	"blank after":     uuid + " ",
	"line end":        uuid + "\n",
	"zero":            uuid + "\x00",
	"not ASCII":       "tokén",
	"wide slash":      "a\uff0fb",
	"wide dots":       "\uff0e\uff0e",
	"not UTF-8":       "a\xff",
	"plus":            "a+b",
}

func TestConformance(t *testing.T) {
	t.Parallel()
	hostile := map[string][]byte{"too long": []byte(strings.Repeat("a", MaxToken+1))}
	for name, token := range notSegments {
		hostile[name] = []byte(token)
	}
	nodetest.Run(t, nodetest.Pair{
		Verifier: Verifier{},
		Prover:   func(*testing.T) node.Prover { return NewProver(uuid) },
		Hostile:  hostile,
		Secrets:  []string{uuid, uuid[:18], uuid[18:]},
	})
}

func TestVerify(t *testing.T) {
	t.Parallel()
	for _, token := range []string{uuid, "a", "...", "A_b-C.9", "join_token", strings.Repeat("a", MaxToken)} {
		got, err := Verifier{}.Verify(t.Context(), node.Attempt{TrustDomain: td, Payload: []byte(token)})
		if err != nil {
			t.Errorf("%q: %v", token, err)
			continue
		}
		if want := "spiffe://example.org/spire/agent/join_token/" + token; got.AgentID.String() != want {
			t.Errorf("agent ID %s, want %s", got.AgentID, want)
		}
		if got.JoinToken != token || got.CanReattest || len(got.Selectors) != 0 {
			t.Errorf("%q: %+v", token, got)
		}
	}
}

// TestS20_TokenIsOneSegment: a token that is not a path segment as it stands
// is refused, not made into one.
func TestS20_TokenIsOneSegment(t *testing.T) {
	t.Parallel()
	for name, token := range notSegments {
		got, err := Verifier{}.Verify(t.Context(), node.Attempt{TrustDomain: td, Payload: []byte(token)})
		if !errors.Is(err, node.ErrMalformed) || !got.AgentID.IsZero() || got.JoinToken != "" {
			t.Errorf("%s: agent ID %q, error %v", name, got.AgentID, err)
		}
	}
}

func TestS08_TokenLength(t *testing.T) {
	t.Parallel()
	for n, ok := range map[int]bool{0: false, 1: true, MaxToken - 1: true, MaxToken: true, MaxToken + 1: false} {
		if _, err := AgentID(td, strings.Repeat("x", n)); (err == nil) != ok {
			t.Errorf("%d bytes: %v, want ok=%v", n, err, ok)
		}
	}
}

// TestS22_ErrorsDoNotRepeatTheToken: of bad tokens, too, as they may be good
// ones with a slip.
func TestS22_ErrorsDoNotRepeatTheToken(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{uuid + "\n", " " + uuid, "token=" + uuid, uuid + strings.Repeat("x", MaxToken)} {
		if _, err := AgentID(td, bad); err == nil || strings.Contains(err.Error(), uuid[:8]) {
			t.Errorf("error %v", err)
		}
	}
}

func TestNoToken(t *testing.T) {
	t.Parallel()
	_, err := nodetest.Exchange(t.Context(), NewProver(""), Verifier{}, td, nil)
	if !errors.Is(err, ErrNoToken) || !strings.Contains(err.Error(), "credence-server token generate") {
		t.Errorf("without a token: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	for _, token := range notSegments {
		f.Add([]byte(token))
	}
	f.Add([]byte(uuid))
	f.Fuzz(func(t *testing.T, payload []byte) {
		got, err := Verifier{}.Verify(t.Context(), node.Attempt{TrustDomain: td, Payload: payload})
		if err != nil {
			if !errors.Is(err, node.ErrMalformed) {
				t.Errorf("error %v", err)
			}
			return
		}
		id, err := spiffeid.FromString("spiffe://example.org/spire/agent/join_token/" + string(payload))
		if err != nil || id != got.AgentID || strings.Count(id.Path(), "/") != 4 || got.JoinToken != string(payload) {
			t.Errorf("token %q: agent ID %s (%v)", payload, got.AgentID, err)
		}
	})
}
