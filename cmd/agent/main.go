// Command agent is credence-agent: the node agent, and the command line to ask
// it for identities.
//
// It holds no logic of its own: each file is one verb, which reads flags and
// calls package agent, or a public API of a running agent. Read run.go first.
package main

import (
	"context"
	"os"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
)

func main() {
	os.Exit(cli.Main(context.Background(), root, cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}

func root(p cli.Persona) *cobra.Command {
	cmd := &cobra.Command{
		Use:   p.Program("agent"),
		Short: "Attests this node and its workloads, and serves them their identities",
	}
	api := &cobra.Command{Use: "api", Short: "Call the Workload API as a workload does"}
	fetch := fetchCommand(p)
	fetch.AddCommand(fetchX509Command(p), fetchJWTCommand(p))
	validate := &cobra.Command{Use: "validate", Short: "Validate a token"}
	validate.AddCommand(validateJWTCommand(p))
	api.AddCommand(fetch, validate, watchCommand(p))
	cmd.AddCommand(runCommand(p), validateCommand(p), healthcheckCommand(p), api)
	return cmd
}
