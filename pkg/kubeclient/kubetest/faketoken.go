package kubetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// keySetPath is where API servers publish their keys.
const keySetPath = "/openid/v1/jwks"

// tokenLife is how long tokens of the fake are good.
const tokenLife = time.Hour

// signer makes tokens.
type signer struct {
	key    *ecdsa.PrivateKey
	with   jose.Signer
	keySet []byte
}

func newSigner(t testing.TB) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const id = "fake-1"
	with, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: id}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: id, Use: "sig", Algorithm: "ES256"}}})
	if err != nil {
		t.Fatal(err)
	}
	return signer{key, with, set}
}

// bound is the claim kubernetes.io.
type bound struct {
	Namespace string `json:"namespace"`
	Account   object `json:"serviceaccount"`
	Pod       object `json:"pod,omitzero"`
	Node      object `json:"node,omitzero"`
}

type object struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

type tokenClaims struct {
	jwt.Claims
	Bound bound `json:"kubernetes.io"`
}

// makeToken serves the subresource token of a service account.
func (f *Fake) makeToken(w http.ResponseWriter, t target, sent map[string]any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	account, there := f.objects[t.folder+"/"+t.name]
	if !there {
		refuse(w, http.StatusNotFound, "NotFound", t.name+" not found")
		return
	}
	namespace := field(account, "metadata", "namespace")
	now := time.Now()
	c := tokenClaims{
		Claims: jwt.Claims{
			Issuer: f.Issuer, Subject: "system:serviceaccount:" + namespace + ":" + t.name,
			Audience: audiences(sent, f.Issuer), IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now),
			Expiry: jwt.NewNumericDate(now.Add(tokenLife)),
		},
		Bound: bound{Namespace: namespace, Account: object{t.name, field(account, "metadata", "uid")}},
	}
	if pod := field(sent, "spec", "boundObjectRef", "name"); pod != "" {
		found := f.objects["/api/v1/namespaces/"+namespace+"/pods/"+pod]
		c.Bound.Pod = object{pod, field(found, "metadata", "uid")}
		if node := field(found, "spec", "nodeName"); node != "" {
			c.Bound.Node = object{node, field(f.objects["/api/v1/nodes/"+node], "metadata", "uid")}
		}
	}
	text, err := jwt.Signed(f.signer.with).Claims(c).Serialize()
	if err != nil {
		refuse(w, http.StatusInternalServerError, "InternalError", err.Error())
		return
	}
	sent["status"] = map[string]any{"token": text, "expirationTimestamp": c.Expiry.Time().UTC().Format(time.RFC3339)}
	reply(w, sent)
}

// audiences are those of a request, or the API server's own.
func audiences(sent map[string]any, own string) []string {
	spec, _ := sent["spec"].(map[string]any)
	list, _ := spec["audiences"].([]any)
	var out []string
	for _, a := range list {
		if text, ok := a.(string); ok {
			out = append(out, text)
		}
	}
	if out == nil {
		out = []string{own}
	}
	return out
}

// reviewToken is a TokenReview, answered.
func (f *Fake) reviewToken(sent map[string]any) map[string]any {
	f.mu.Lock()
	defer f.mu.Unlock()
	sent["status"] = f.tokenStatus(field(sent, "spec", "token"), audiences(sent, f.Issuer))
	return sent
}

func (f *Fake) tokenStatus(text string, wanted []string) map[string]any {
	bad := func(why string) map[string]any { return map[string]any{"authenticated": false, "error": why} }
	token, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return bad("not a token")
	}
	var c tokenClaims
	if token.Claims(f.signer.key.Public(), &c) != nil || c.Validate(jwt.Expected{Issuer: f.Issuer}) != nil {
		return bad("invalid bearer token")
	}
	var good []any
	for _, a := range wanted {
		if slices.Contains(c.Audience, a) {
			good = append(good, a)
		}
	}
	b, extra := c.Bound, map[string]any{}
	below := "/api/v1/namespaces/" + b.Namespace
	for path, want := range map[string]string{
		below + "/serviceaccounts/" + b.Account.Name: b.Account.UID, below + "/pods/" + b.Pod.Name: b.Pod.UID,
	} {
		if want != "" && field(f.objects[path], "metadata", "uid") != want {
			return bad("what the token is bound to is gone")
		}
	}
	if good == nil {
		return bad("the token is not for this audience")
	}
	for what, o := range map[string]object{"pod": b.Pod, "node": b.Node} {
		if o.Name != "" {
			extra["authentication.kubernetes.io/"+what+"-name"] = []any{o.Name}
			extra["authentication.kubernetes.io/"+what+"-uid"] = []any{o.UID}
		}
	}
	return map[string]any{
		"authenticated": true, "audiences": good,
		"user": map[string]any{"username": c.Subject, "uid": b.Account.UID, "extra": extra},
	}
}
