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
	fetch := fetchCommand(p)
	fetch.AddCommand(fetchX509Command(p), fetchJWTCommand(p))
	cmd.AddCommand(
		cli.BareErrors(runCommand(p)), cli.BareErrors(csiCommand(p)), cli.BareErrors(validateCommand(p)), healthcheckCommand(p),
		cli.BareErrors(noun("api", "Call the Workload API as a workload does",
			fetch, noun("validate", "Validate a token", validateJWTCommand(p)), watchCommand(p))),
		noun("logger", "See and change what the agent logs", loggerGet(p), loggerSet(p), loggerReset(p)),
		noun("debug", "Look inside the agent", debugGetInfo(p)),
	)
	return cmd
}

// noun is a command that only has others below it.
func noun(name, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short}
	cmd.AddCommand(verbs...)
	return cmd
}
