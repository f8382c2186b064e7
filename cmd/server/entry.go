package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/spf13/cobra"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// entryPage is how many entries one call asks for: their messages stay far
// below gRPC's usual 4 MB.
const entryPage = 500

func entryCreate(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var f *entryFlags
	cmd := verb(p, "create", "Create an entry", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		e, err := f.entry()
		if err != nil {
			return err
		}
		resp, err := entryv1.NewEntryClient(conn).BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
		if err != nil {
			return err
		}
		out := outcome{verb: "create"}
		for _, r := range resp.GetResults() {
			out.add(r.GetStatus(), &r.Entry, e)
		}
		return out.print(cmd, format, p, resp)
	})
	format = cli.OutputFlag(cmd.Flags())
	f = newEntryFlags(cmd.Flags())
	f.allowNode(cmd.Flags())
	return cmd
}

func entryUpdate(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var f *entryFlags
	cmd := verb(p, "update", "Replace an entry", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		if f.entryID == "" {
			return cli.Hint(errors.New("entry ID is required"), "`entry show` lists the IDs")
		}
		e, err := f.entry()
		if err != nil {
			return err
		}
		client := entryv1.NewEntryClient(conn)
		if e.AdditionalAttributes != nil {
			// These have no mask of their own: what was not asked for is kept.
			now, err := client.GetEntry(ctx, &entryv1.GetEntryRequest{Id: e.GetId()})
			if err != nil {
				return fmt.Errorf("reading the entry as it is: %w", err)
			}
			f.mergeAttributes(e, now)
		}
		resp, err := client.BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{e}})
		if err != nil {
			return err
		}
		out := outcome{verb: "update"}
		for _, r := range resp.GetResults() {
			out.add(r.GetStatus(), &r.Entry, e)
		}
		return out.print(cmd, format, p, resp)
	})
	format = cli.OutputFlag(cmd.Flags())
	f = newEntryFlags(cmd.Flags())
	return cmd
}

// outcome is what became of the items of a batch.
type outcome struct {
	verb   string
	done   []*types.Entry
	failed []failedEntry
}

type failedEntry struct {
	status *types.Status
	entry  *types.Entry
}

// add takes one result. An entry that failed is shown as it was asked for, in
// JSON too, as SPIRE does.
func (o *outcome) add(s *types.Status, entry **types.Entry, asked *types.Entry) {
	if code(s) == codes.OK {
		o.done = append(o.done, *entry)
		return
	}
	*entry = asked
	o.failed = append(o.failed, failedEntry{s, asked})
}

// print writes the outcome; failures go to stderr and make the command fail,
// but in JSON under SPIRE's name, where scripts read the statuses.
func (o *outcome) print(cmd *cobra.Command, format *cli.Format, p cli.Persona, resp proto.Message) error {
	err := format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
		out, bad := printer{w: w}, printer{w: cmd.ErrOrStderr()}
		for _, e := range o.done {
			printEntry(&out, e)
		}
		for _, f := range o.failed {
			bad.printf("Failed to %s the following entry (code: %s, msg: %q):\n", o.verb, code(f.status), f.status.GetMessage())
			printEntry(&bad, f.entry)
		}
		return errors.Join(out.err, bad.err)
	}, resp)
	if err != nil || len(o.failed) == 0 || (p.SPIRE && format.IsJSON()) {
		return err
	}
	return fmt.Errorf("failed to %s one or more entries", o.verb)
}

func code(s *types.Status) codes.Code {
	return codes.Code(s.GetCode())
}

func entryShow(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var f *entryFilter
	var entryID *string
	cmd := verb(p, "show", "Show entries", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		all := &entryv1.ListEntriesResponse{}
		client := entryv1.NewEntryClient(conn)
		if *entryID != "" {
			if f.given() {
				return errors.New("the -entryID flag can't be combined with others")
			}
			e, err := client.GetEntry(ctx, &entryv1.GetEntryRequest{Id: *entryID})
			if err != nil {
				return fmt.Errorf("error fetching entry ID %s: %w", *entryID, err)
			}
			all.Entries = append(all.Entries, e)
		} else if err := f.list(ctx, client, all); err != nil {
			return err
		}
		sortEntries(all.GetEntries())
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
			out := printer{w: w}
			out.printf("Found %s\n", counted(len(all.GetEntries()), "entry", "entries"))
			for _, e := range all.GetEntries() {
				printEntry(&out, e)
			}
			return out.err
		}, all)
	})
	format = cli.OutputFlag(cmd.Flags())
	entryID = cmd.Flags().String("entryID", "", "the entry with this ID")
	f = newEntryFilter(cmd.Flags())
	return cmd
}

func entryCount(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var f *entryFilter
	cmd := verb(p, "count", "Count entries", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		filter, err := f.build()
		if err != nil {
			return err
		}
		resp, err := entryv1.NewEntryClient(conn).CountEntries(ctx, &entryv1.CountEntriesRequest{Filter: &entryv1.CountEntriesRequest_Filter{
			BySpiffeId: filter.GetBySpiffeId(), ByParentId: filter.GetByParentId(), BySelectors: filter.GetBySelectors(),
			ByFederatesWith: filter.GetByFederatesWith(), ByHint: filter.GetByHint(), ByDownstream: filter.GetByDownstream(),
		}})
		if err != nil {
			return err
		}
		return format.Print(cmd.OutOrStdout(), func(w io.Writer) error {
			_, err := fmt.Fprintln(w, counted(resp.GetCount(), "registration entry", "registration entries"))
			return err
		}, resp)
	})
	format = cli.OutputFlag(cmd.Flags())
	f = newEntryFilter(cmd.Flags())
	return cmd
}

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
	in := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("-file: %w", err)
		}
		defer f.Close() //nolint:errcheck // only read from
		in = f
	}
	var ids struct {
		IDs []string `json:"ids"`
	}
	d := json.NewDecoder(in)
	d.DisallowUnknownFields()
	if err := d.Decode(&ids); err != nil {
		return cli.Hint(fmt.Errorf("-file %s: %w", path, err), `it is of the form {"ids": ["…", "…"]}`)
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
			out.printf("Deleted %d entries successfully\n", len(done))
		case len(done) == 0:
			out.printf("\n\nFailed to delete %d entries\n", len(failed))
		default:
			out.printf("\n\nDeleted %d entries successfully, but failed to delete %d entries\n", len(done), len(failed))
		}
		return errors.Join(out.err, bad.err)
	}, resp)
	if err != nil || len(failed) == 0 || (p.SPIRE && format.IsJSON()) {
		return err
	}
	return errors.New("failed to delete one or more entries")
}
