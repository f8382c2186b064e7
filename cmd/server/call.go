package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/credence-id/credence/pkg/attest"
	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
)

// verb makes a command that does one thing over the admin socket; flags adds
// the command's own.
func verb(p cli.Persona, name, short string, do func(context.Context, *cobra.Command, grpc.ClientConnInterface) error) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs}
	socket := cli.ServerSocket(cmd.Flags(), p)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		conn, err := socket.Conn()
		if err != nil {
			return err
		}
		defer conn.Close() //nolint:errcheck // the process ends
		return do(cmd.Context(), cmd, conn)
	}
	return cmd
}

// parseID reads a SPIFFE ID given by the named flag.
func parseID(flag, text string) (*types.SPIFFEID, error) {
	id, err := spiffeid.FromString(text)
	if err != nil {
		return nil, cli.Hint(fmt.Errorf("-%s %q: %w", flag, text, err), "a SPIFFE ID looks like spiffe://example.org/path")
	}
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}, nil
}

func idText(id *types.SPIFFEID) string {
	if id == nil {
		return ""
	}
	return "spiffe://" + id.GetTrustDomain() + id.GetPath()
}

// parseSelectors reads -selector values.
func parseSelectors(texts []string) ([]*types.Selector, error) {
	out := make([]*types.Selector, 0, len(texts))
	for _, text := range texts {
		s, err := attest.ParseSelector(text)
		if err != nil {
			return nil, fmt.Errorf("-selector: %w", err)
		}
		out = append(out, &types.Selector{Type: s.Type, Value: s.Value})
	}
	return out, nil
}

// selectorMatch reads -selector and -matchSelectorsOn; nil when there is no
// selector.
func selectorMatch(texts []string, on string) (*types.SelectorMatch, error) {
	if len(texts) == 0 {
		return nil, nil
	}
	match, err := matchNamed("matchSelectorsOn", on, types.SelectorMatch_MatchBehavior_value)
	if err != nil {
		return nil, err
	}
	selectors, err := parseSelectors(texts)
	if err != nil {
		return nil, err
	}
	return &types.SelectorMatch{Selectors: selectors, Match: types.SelectorMatch_MatchBehavior(match)}, nil
}

// printer writes lines and keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

// counted is "1 entry", "2 entries".
func counted[N int | int32](n N, one, many string) string {
	if n == 1 {
		return fmt.Sprintf("%d %s", n, one)
	}
	return fmt.Sprintf("%d %s", n, many)
}

// matches are the words of the -match… flags.
const matches = "exact, any, superset or subset"

// matchNamed looks a word of a -match… flag up in the names of an enum of
// SPIRE's API, which are MATCH_ and the word.
func matchNamed(flag, word string, values map[string]int32) (int32, error) {
	v, ok := values["MATCH_"+strings.ToUpper(word)]
	if !ok {
		return 0, fmt.Errorf("-%s: %q is not a way to match; use %s", flag, word, matches)
	}
	return v, nil
}
