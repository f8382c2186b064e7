package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

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

// parseID reads a SPIFFE ID given by the named flag. Like that of all mistakes
// in flags, the text of the error is SPIRE's, and the hint says more.
func parseID(flag, text string) (*types.SPIFFEID, error) {
	id, err := spiffeid.FromString(text)
	if err != nil {
		return nil, cli.Hint(err, fmt.Sprintf("-%s %q has to look like spiffe://example.org/path", flag, text))
	}
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}, nil
}

func idText(id *types.SPIFFEID) string {
	if id == nil {
		return ""
	}
	return "spiffe://" + id.GetTrustDomain() + id.GetPath()
}

// parseSelector reads a value of -selector. What a type and a value may be is
// for the server to say.
func parseSelector(text string) (*types.Selector, error) {
	kind, value, ok := strings.Cut(text, ":")
	if !ok {
		return nil, cli.Hint(fmt.Errorf("selector %q must be formatted as type:value", text), "such as -selector unix:uid:1000")
	}
	return &types.Selector{Type: kind, Value: value}, nil
}

// parseSelectors reads the values of -selector; problem says of one that is
// wrong what the verb's errors begin with.
func parseSelectors(texts []string, problem func(text string, err error) error) ([]*types.Selector, error) {
	out := make([]*types.Selector, 0, len(texts))
	for _, text := range texts {
		s, err := parseSelector(text)
		if err != nil {
			return nil, problem(text, err)
		}
		out = append(out, s)
	}
	return out, nil
}

// readFile reads the file at path, which is standard input if that is a dash.
func readFile(stdin io.Reader, path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(path)
}

// toInt32 narrows a number for SPIRE's API, and refuses one that is too large
// in SPIRE's words.
func toInt32[N ~int | ~int64](n N) (int32, error) {
	if N(int32(n)) != n {
		return 0, fmt.Errorf("overflow converting %T(%v) to int32", n, n)
	}
	return int32(n), nil
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
func counted[N int | int32 | uint32](n N, one, many string) string {
	if n == 1 {
		return fmt.Sprintf("%d %s", n, one)
	}
	return fmt.Sprintf("%d %s", n, many)
}

// matches are the words of the -match… flags.
const matches = "exact, any, superset or subset"

// matchNamed looks a word of a -match… flag up in the names of an enum of
// SPIRE's API, which are MATCH_ and the word.
func matchNamed(word string, values map[string]int32) (match int32, ok bool) {
	match, ok = values["MATCH_"+strings.ToUpper(word)]
	return match, ok && word == strings.ToLower(word)
}
