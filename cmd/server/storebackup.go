package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/credence-id/credence/pkg/atomicfile"
	"github.com/credence-id/credence/pkg/cli"
	"github.com/credence-id/credence/pkg/store/dump"
	operatorv1 "github.com/credence-id/credence/proto/operator/v1"
	"github.com/spf13/cobra"
)

// backupFlags are the flags of backup beside those of every store verb.
type backupFlags struct {
	*storeFlags
	out       string
	overwrite bool
}

func storeBackup(p cli.Persona) *cobra.Command {
	b := &backupFlags{}
	cmd, f := storeVerb("backup", "Copy the store to a file, while the server works", func(ctx context.Context, cmd *cobra.Command, _ *storeFlags) error {
		return b.run(ctx, cmd)
	})
	cmd.Long = `Writes a consistent copy of the store, whichever engine keeps it, to a file that
store restore makes a store of, with the same engine or another one. The server
goes on working. The file is there whole or not at all, with mode 0600, and was
read back.

A backup has no private keys. It has who may have which identity, the agents, and
hashes of join tokens: keep it as you keep the store.

With -config the store of a server that is stopped is copied.`
	b.storeFlags = f
	f.online(p)
	cmd.Flags().StringVar(&b.out, "out", "", "the file to write")
	cmd.Flags().BoolVar(&b.overwrite, "overwrite", false, "replace the file if it is there")
	return cmd
}

func (b *backupFlags) run(ctx context.Context, cmd *cobra.Command) error {
	if b.out == "" {
		return cli.Hint(errors.New("-out is required"), "it is the file to write, such as -out /var/backups/credence.dump")
	}
	if err := absent(b.out, b.overwrite); err != nil {
		return fmt.Errorf("-out: %w", err)
	}
	conn, err := b.conn()
	if err != nil {
		return err
	}
	write := func(f *os.File) error { return b.copyOffline(ctx, cmd, f) }
	if conn != nil {
		defer conn.Close() //nolint:errcheck // the process ends
		write = func(f *os.File) error { return b.receive(ctx, cmd, operatorv1.NewOperatorClient(conn), f) }
	}
	var sum dump.Summary
	err = atomicfile.Create(b.out, 0o600, func(f *os.File) error {
		if err := write(f); err != nil {
			return err
		}
		b.progress.End()
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		sum, err = dump.Verify(f)
		return err
	})
	if err != nil {
		return dumpError(err)
	}
	return b.printBackup(cmd.OutOrStdout(), b.out, sum)
}

// copyOffline writes the store of a server that is stopped.
func (b *backupFlags) copyOffline(ctx context.Context, cmd *cobra.Command, w io.Writer) (err error) {
	s, err := b.open(ctx, cmd, b.config, false)
	if err != nil {
		return err
	}
	defer closeStore(s, &err)
	_, err = dump.Write(ctx, s, w, b.counting(cmd, "backing up keys", 0))
	return err
}

// receive writes what a running server sends, and holds it against what that
// says it has sent.
func (b *backupFlags) receive(ctx context.Context, cmd *cobra.Command, client operatorv1.OperatorClient, w io.Writer) error {
	stream, err := client.Backup(ctx, &operatorv1.BackupRequest{})
	if err != nil {
		return err
	}
	b.progress.Start(cmd.ErrOrStderr(), "receiving KiB", 0)
	digest, received := sha256.New(), uint64(0)
	to := io.MultiWriter(w, digest)
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the server ended the backup before its end: try again")
		}
		if err != nil {
			return fmt.Errorf("receiving the backup: %w", err)
		}
		if t := m.GetTrailer(); t != nil {
			if !bytes.Equal(t.GetSha256(), digest.Sum(nil)) || t.GetBytes() != received {
				return fmt.Errorf("what was received, %d bytes, is not what the server has sent, %d bytes: try again", received, t.GetBytes())
			}
			return nil
		}
		if _, err := to.Write(m.GetChunk()); err != nil {
			return err
		}
		b.progress.Add(int((received+uint64(len(m.GetChunk())))>>10) - int(received>>10))
		received += uint64(len(m.GetChunk()))
	}
}

// backupReport is what backup and verify say of a file.
type backupReport struct {
	File   string      `json:"file"`
	Of     description `json:"of"`
	Keys   int         `json:"keys"`
	Bytes  int64       `json:"bytes"`
	SHA256 string      `json:"sha256"`
}

// printBackup says what is in the backup at path.
func (f *storeFlags) printBackup(w io.Writer, path string, sum dump.Summary) error {
	digest, err := fileDigest(path)
	if err != nil {
		return err
	}
	r := backupReport{File: path, Of: describe(sum), Keys: sum.Keys, Bytes: sum.Bytes, SHA256: digest}
	return f.format.PrintValue(w, func(w io.Writer) error {
		out := printer{w: w}
		out.printf("Backup    : %s\n", r.File)
		out.printf("Of        : %s store %s at revision %d, %s\n", r.Of.Engine, r.Of.StoreID, r.Of.Revision, r.Of.Time)
		out.printf("Holds     : %d keys, %d bytes\n", r.Keys, r.Bytes)
		out.printf("SHA-256   : %s\n", r.SHA256)
		return out.err
	}, r)
}

// fileDigest is that of the whole file, as sha256sum says it.
func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() //nolint:errcheck // it was read only
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
