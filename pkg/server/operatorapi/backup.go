package operatorapi

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	"github.com/credence-id/credence/pkg/store/dump"
	"github.com/credence-id/credence/pkg/telemetry"
	operatorv1 "github.com/credence-id/credence/proto/operator/v1"
)

// chunkSize is the most bytes of a copy in one message.
const chunkSize = 256 << 10

// Backup sends a copy of the store as package dump writes it, whatever the
// engine, at the pace of whoever reads it.
func (s *Service) Backup(_ *operatorv1.BackupRequest, stream grpc.ServerStreamingServer[operatorv1.BackupResponse]) (err error) {
	ctx, begin := stream.Context(), time.Now()
	w := &chunks{stream: stream, hash: sha256.New(), buf: make([]byte, 0, chunkSize)}
	var sum dump.Summary
	done := s.begin(ctx, "store.backup")
	defer func() {
		done(err, slog.Uint64(telemetry.Revision, uint64(sum.Revision)), slog.Uint64(telemetry.Bytes, w.sent))
	}()

	if sum, err = dump.Write(ctx, s.cfg.Store, w, nil); err != nil {
		return fmt.Errorf("backing up the store: %w", err)
	}
	if err := w.flush(); err != nil {
		return err
	}
	if err := stream.Send(&operatorv1.BackupResponse{Step: &operatorv1.BackupResponse_Trailer{Trailer: &operatorv1.BackupTrailer{
		Revision: uint64(sum.Revision), Sha256: w.hash.Sum(nil), Bytes: w.sent, Engine: sum.Engine, StoreId: sum.StoreID,
	}}}); err != nil {
		return err
	}
	s.mu.Lock()
	s.last = &backup{at: time.Now(), revision: sum.Revision}
	s.mu.Unlock()
	s.cfg.Logger.InfoContext(ctx, "the store was backed up", telemetry.Revision, uint64(sum.Revision),
		telemetry.Count, sum.Keys, telemetry.Bytes, w.sent, telemetry.Elapsed, time.Since(begin))
	return nil
}

// chunks sends what is written to it.
type chunks struct {
	stream grpc.ServerStreamingServer[operatorv1.BackupResponse]
	hash   hash.Hash
	buf    []byte
	sent   uint64
}

// Write is io.Writer. It blocks while the reader has enough to read.
func (c *chunks) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		part := p[:min(len(p), chunkSize-len(c.buf))]
		c.buf, p = append(c.buf, part...), p[len(part):]
		if len(c.buf) < chunkSize {
			continue
		}
		if err := c.flush(); err != nil {
			return n - len(p), err
		}
	}
	return n, nil
}

// flush sends what is left. gRPC has encoded the chunk when Send returns.
func (c *chunks) flush() error {
	if len(c.buf) == 0 {
		return nil
	}
	c.hash.Write(c.buf)
	c.sent += uint64(len(c.buf))
	err := c.stream.Send(&operatorv1.BackupResponse{Step: &operatorv1.BackupResponse_Chunk{Chunk: c.buf}})
	c.buf = c.buf[:0]
	return err
}
