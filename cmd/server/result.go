package main

import (
	"fmt"
	"io"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

// printResult writes the answer to a call about one thing: a sentence if it was
// done. If it was refused the command fails, see failure.
func printResult(cmd *cobra.Command, p cli.Persona, format *cli.Format, resp proto.Message, done string, refused error) error {
	err := format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
		if refused != nil {
			return nil
		}
		_, err := fmt.Fprintln(w, done)
		return err
	}, resp)
	if err != nil {
		return err
	}
	return failure(p, format, refused)
}

// failure is how a command ends when the server refused an item. In JSON the
// statuses say so, and under SPIRE's name that is all: its scripts expect exit
// code 0.
func failure(p cli.Persona, format *cli.Format, err error) error {
	if p.SPIRE && format.IsJSON() {
		return nil
	}
	return err
}
