package apitypes

import (
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/credence-id/credence/pkg/attest"
)

// ID is a SPIFFE ID in its two parts; the path keeps its leading slash.
func ID(id spiffeid.ID) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}

// ParseID reads a SPIFFE ID. A nil message is an error: the ID is required.
func ParseID(m *types.SPIFFEID) (spiffeid.ID, error) {
	if m == nil {
		return spiffeid.ID{}, errors.New("request must specify SPIFFE ID")
	}
	td, err := spiffeid.TrustDomainFromString(m.GetTrustDomain())
	if err != nil {
		return spiffeid.ID{}, err
	}
	return spiffeid.FromPath(td, m.GetPath())
}

// Selectors are the selectors in their order.
func Selectors(in attest.Selectors) []*types.Selector {
	if len(in) == 0 {
		return nil
	}
	// One block of memory for all of them.
	block := make([]types.Selector, len(in))
	out := make([]*types.Selector, len(in))
	for i := range in {
		block[i].Type, block[i].Value = in[i].Type, in[i].Value
		out[i] = &block[i]
	}
	return out
}

// ParseSelectors reads and validates selectors and makes a sorted set of them.
// The error names no value.
func ParseSelectors(in []*types.Selector) (attest.Selectors, error) {
	if len(in) > attest.MaxSelectors {
		return nil, fmt.Errorf("%d selectors, at most %d are allowed", len(in), attest.MaxSelectors)
	}
	out := make(attest.Selectors, 0, len(in))
	for _, m := range in {
		sel := attest.Selector{Type: m.GetType(), Value: m.GetValue()}
		if err := sel.Validate(); err != nil {
			return nil, err
		}
		out = append(out, sel)
	}
	return attest.NewSelectors(out...), nil
}
