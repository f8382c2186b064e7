package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/credence-id/credence/pkg/cli"
	"github.com/credence-id/credence/pkg/manifest"
	"github.com/spf13/cobra"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

func entryCreate(p cli.Persona) *cobra.Command {
	var format *cli.Format
	var f *entryFlags
	cmd := verb(p, "create", "Create entries", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		entries, err := f.entries(cmd.InOrStdin(), p, func() error { return f.needed("a parent ID is required if the node flag is not set") })
		if err != nil {
			return err
		}
		resp, err := entryv1.NewEntryClient(conn).BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: entries})
		if err != nil {
			return err
		}
		out := outcome{verb: "create"}
		for i, r := range resp.GetResults() {
			out.add(r.GetStatus(), &r.Entry, entries, i)
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
	cmd := verb(p, "update", "Replace entries", func(ctx context.Context, cmd *cobra.Command, conn grpc.ClientConnInterface) error {
		entries, err := f.entries(cmd.InOrStdin(), p, func() error {
			if f.entryID == "" {
				return cli.Hint(errors.New("entry ID is required"), "`entry show` lists the IDs")
			}
			return f.needed("a parent ID is required")
		})
		if err != nil {
			return err
		}
		client := entryv1.NewEntryClient(conn)
		if f.data == "" && f.attributesGiven() {
			now, err := client.GetEntry(ctx, &entryv1.GetEntryRequest{Id: f.entryID})
			if err != nil {
				return fmt.Errorf("failed to fetch existing entry to merge additional attributes: %w", err)
			}
			f.keepAttributes(entries[0], now)
		}
		resp, err := client.BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{Entries: entries})
		if err != nil {
			return err
		}
		out := outcome{verb: "update"}
		for i, r := range resp.GetResults() {
			out.add(r.GetStatus(), &r.Entry, entries, i)
		}
		return out.print(cmd, format, p, resp)
	})
	format = cli.OutputFlag(cmd.Flags())
	f = newEntryFlags(cmd.Flags())
	return cmd
}

// entries are what the file of -data says, or what the flags say after check
// has looked at them. A file may have fields that nobody knows only under
// SPIRE's name, as with SPIRE.
func (f *entryFlags) entries(stdin io.Reader, p cli.Persona, check func() error) ([]*types.Entry, error) {
	if f.data != "" {
		text, err := readFile(stdin, f.data)
		if err != nil {
			return nil, err
		}
		return manifest.DecodeData(f.data, text, !p.SPIRE)
	}
	if err := check(); err != nil {
		return nil, err
	}
	e, err := f.entry()
	if err != nil {
		return nil, err
	}
	return []*types.Entry{e}, nil
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

// add takes the i-th result. An entry that failed is shown as it was asked for,
// in JSON too, as SPIRE does.
func (o *outcome) add(s *types.Status, entry **types.Entry, asked []*types.Entry, i int) {
	if code(s) == codes.OK {
		o.done = append(o.done, *entry)
		return
	}
	if i < len(asked) {
		*entry = asked[i]
	}
	o.failed = append(o.failed, failedEntry{s, *entry})
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
	if err != nil || len(o.failed) == 0 {
		return err
	}
	return failure(p, format, fmt.Errorf("failed to %s one or more entries", o.verb))
}

func code(s *types.Status) codes.Code {
	return codes.Code(s.GetCode())
}
