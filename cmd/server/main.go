// Command server is credence-server: the control plane, and the command line
// of its operators.
//
// It holds no logic of its own: each file is one verb or one noun's verbs,
// which read flags and call package server, or a public API of a running
// server over its admin socket. Read run.go first, then entry.go.
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
		Use:   p.Program("server"),
		Short: "Issues identities to workloads: the certificate authority and the registry",
	}
	cmd.AddCommand(
		runCommand(p), validateCommand(p), healthcheckCommand(p),
		noun("entry", "Say who may be whom", entryCreate(p), entryShow(p), entryUpdate(p), entryDelete(p), entryCount(p), entryApply(p)),
		noun("agent", "See and manage attested agents", agentList(p), agentShow(p), agentBan(p), agentEvict(p), agentPurge(p), agentCount(p)),
		noun("token", "Let an agent in", tokenGenerate(p)),
		noun("bundle", "See and manage what verifies identities", bundleShow(p), bundleList(p), bundleSet(p), bundleDelete(p), bundleCount(p)),
		noun("federation", "Say where the bundles of other trust domains are fetched", federationCreate(p), federationUpdate(p), federationDelete(p),
			federationList(p), federationShow(p), federationRefresh(p)),
		localAuthority(p),
		noun("upstreamauthority", "Taint and revoke the authority above this server's", upstreamTaint(p), upstreamRevoke(p)),
		noun("logger", "See and change what the server logs", loggerGet(p), loggerSet(p), loggerReset(p)),
		noun("debug", "Look into the server", debugGetInfo(p)),
		noun("x509", "Mint X509-SVIDs by hand", x509Mint(p)),
		noun("jwt", "Mint JWT-SVIDs by hand", jwtMint(p)),
	)
	cmd.AddCommand(storeCommand(p), drainCommand(p), devCommand(p), importCommand(p))
	return cmd
}

func noun(name, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: name, Short: short}
	cmd.AddCommand(verbs...)
	return cmd
}
