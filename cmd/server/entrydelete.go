package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

func entryDelete(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var entryID, file *string
	cmd := verb(p, "delete", "Delete entries", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		req := &entryv1.BatchDeleteEntryRequest{}
		switch {
		case *file != "":
			if err := readIDs(cmd.InOrStdin(), *file, req); err != nil {
				return err
			}
		case *entryID != "":
			req.Ids = []string{*entryID}
		default:
			return cli.Hint(errors.New("an entry ID is required"), "`entry show` lists the IDs")
		}
		resp, err := entryv1.NewEntryClient(conn).BatchDeleteEntry(ctx, req)
		if err != nil {
			return err
		}
		return printDeleted(cmd, format, p, resp)
	})
	format = cli.OutputFlag(cmd.Flags())
	entryID = cmd.Flags().String("entryID", "", "the ID of the entry to delete")
	file = cmd.Flags().String("file", "", `a JSON file of the form {"ids": ["…"]}, or - for standard input`)
	return cmd
}

func readIDs(stdin io.Reader, path string, req *entryv1.BatchDeleteEntryRequest) error {
	text, err := readFile(stdin, path)
	if err != nil {
		return err
	}
	var ids struct {
		IDs []string `json:"ids"`
	}
	if err := json.Unmarshal(text, &ids); err != nil {
		return cli.Hint(err, path+` has to be of the form {"ids": ["…", "…"]}`)
	}
	req.Ids = ids.IDs
	return nil
}

func printDeleted(cmd *cobra.Command, format *cli.Format, p cli.Persona, resp *entryv1.BatchDeleteEntryResponse) error {
	var done, failed []*entryv1.BatchDeleteEntryResponse_Result
	for _, r := range resp.GetResults() {
		if code(r.GetStatus()) == codes.OK {
			done = append(done, r)
		} else {
			failed = append(failed, r)
		}
	}
	err := format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
		out, bad := printer{w: w}, printer{w: cmd.ErrOrStderr()}
		for _, r := range done {
			out.printf("Deleted entry with ID: %s\n", r.GetId())
		}
		if len(done) > 0 {
			out.printf("\n\n")
		}
		for _, r := range failed {
			bad.printf("Failed to delete entry with ID %s (code: %s, msg: %q)\n", r.GetId(), code(r.GetStatus()), r.GetStatus().GetMessage())
		}
		switch {
		case len(failed) == 0:
			out.printf("Deleted %d entries successfully", len(done))
		case len(done) == 0:
			out.printf("\n\nFailed to delete %d entries", len(failed))
		default:
			out.printf("\n\nDeleted %d entries successfully, but failed to delete %d entries", len(done), len(failed))
		}
		if !p.SPIRE { // SPIRE leaves the line open.
			out.printf("\n")
		}
		return errors.Join(out.err, bad.err)
	}, resp)
	if err != nil || len(failed) == 0 {
		return err
	}
	return failure(p, format, errors.New("failed to delete one or more entries"))
}
