package bolt

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/engine"
	"github.com/credence-id/credence/pkg/telemetry"
)

const (
	// engineName is the configured one.
	engineName = "bolt"
	// format is the layout that this program writes, see doc.go.
	format = 1
	// lockWait is how long a process that is just closing the file is waited
	// for.
	lockWait = 250 * time.Millisecond
	// newSuffix follows the file's name while the file is being made.
	newSuffix = ".new-"
)

// Open opens the store, making it if there is no file. It returns
// store.ErrLocked when another process has the file open, store.ErrFormat when
// a newer program wrote it, and otherwise an error that names the path.
func Open(cfg Config) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	if err := ensure(cfg.Path, cfg.Logger); err != nil {
		return nil, err
	}
	db, err := openFile(cfg.Path, cfg.MmapSize)
	if err != nil {
		return nil, err
	}
	sweep(cfg.Path)
	s := &Store{cfg: cfg, db: db, turns: newTurns(), locks: newLocks()}
	head, err := s.load()
	if err == nil {
		s.file, err = os.Stat(cfg.Path)
	}
	if err == nil {
		s.ring = engine.NewRing(head, cfg.RingBatches, cfg.RingBytes)
		s.metrics = newMetrics(s)
		err = s.metrics.all.Register(cfg.Registerer)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// Check says what [Open] would refuse about the file at path, and changes
// nothing. That there is none, or that a process has it open, is no problem.
func Check(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("store: %w", err)
	}
	if err := checkMode(path, info, slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	db, err := openWith(path, &bbolt.Options{ReadOnly: true, Timeout: lockWait, FreelistType: bbolt.FreelistMapType})
	if errors.Is(err, store.ErrLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	err = guard(path, func() error {
		return db.View(func(tx *bbolt.Tx) error {
			if err := checkSize(tx, path); err != nil {
				return err
			}
			_, err := readInfo(tx, path)
			return err
		})
	})
	return errors.Join(err, db.Close())
}

// load reads what is constant, and the revision.
func (s *Store) load() (head store.Revision, err error) {
	err = guard(s.cfg.Path, func() error {
		return s.db.View(func(tx *bbolt.Tx) (err error) {
			if err = checkSize(tx, s.cfg.Path); err != nil {
				return err
			}
			if s.info, err = readInfo(tx, s.cfg.Path); err != nil {
				return err
			}
			head = newSnapshot(tx).rev
			return nil
		})
	})
	return head, err
}

// Renew gives the store in the file a new ID, as a restored or copied store
// must have: revisions that clients hold of the original mean nothing here.
// The file must not be open.
func Renew(path string) error {
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("store: renewing: %w", err)
	}
	db, err := openFile(path, 0)
	if err != nil {
		return err
	}
	err = guard(path, func() error {
		return db.Update(func(tx *bbolt.Tx) error {
			if err := checkSize(tx, path); err != nil {
				return err
			}
			if _, err := readInfo(tx, path); err != nil {
				return err
			}
			return tx.Bucket(bucketMeta).Put(keyID, newID())
		})
	})
	return errors.Join(err, db.Close())
}

// ensure makes the file if it is not there, whole or not at all: it is built
// under another name and linked into place.
func ensure(path string, log *slog.Logger) error {
	info, err := os.Stat(path)
	switch {
	case err == nil:
		return checkMode(path, info, log)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("store: %w", err)
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+newSuffix+"*")
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("store: directory %s does not exist: create it or change data_dir: %w", dir, err)
	}
	if err != nil {
		return fmt.Errorf("store: directory %s must be writable by uid %d: %w", dir, os.Getuid(), err)
	}
	tmp := f.Name()
	defer os.Remove(tmp) //nolint:errcheck // What is left behind, sweep removes.
	if err := f.Close(); err != nil {
		return fmt.Errorf("store: creating %s: %w", tmp, err)
	}
	if err := initialize(tmp); err != nil {
		return fmt.Errorf("store: creating %s: %w", path, err)
	}
	// Whoever links first made the store; the others open it, also when that
	// one has already swept their files away.
	if err := os.Link(tmp, path); err != nil {
		if _, statErr := os.Stat(path); statErr != nil {
			return fmt.Errorf("store: creating %s: %w", path, err)
		}
	}
	return syncDir(dir)
}

// sweep removes what a crash in ensure left. The caller has the store open, so
// whoever is still making one will find that it came too late.
func sweep(path string) {
	dir, base := filepath.Split(path)
	left, _ := os.ReadDir(filepath.Clean(dir)) // Next time.
	for _, f := range left {
		if strings.HasPrefix(f.Name(), base+newSuffix) {
			_ = os.Remove(filepath.Join(dir, f.Name()))
		}
	}
}

// initialize writes an empty store.
func initialize(path string) error {
	db, err := openFile(path, 0)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		meta, err := tx.CreateBucket(bucketMeta)
		if err != nil {
			return err
		}
		if _, err := tx.CreateBucket(bucketKV); err != nil {
			return err
		}
		if err := meta.Put(keyFormat, []byte(strconv.Itoa(format))); err != nil {
			return err
		}
		return meta.Put(keyID, newID())
	})
	return errors.Join(err, db.Close())
}

func newID() []byte {
	id := make([]byte, 16)
	rand.Read(id) // Never fails.
	return hex.AppendEncode(nil, id)
}

// readInfo reads the meta bucket and refuses what this program cannot read.
func readInfo(tx *bbolt.Tx, path string) (store.Info, error) {
	meta, kv := tx.Bucket(bucketMeta), tx.Bucket(bucketKV)
	if meta == nil || kv == nil {
		return store.Info{}, fmt.Errorf("store: %s is not a store of this program: move it away", path)
	}
	have, err := strconv.Atoi(string(meta.Get(keyFormat)))
	switch {
	case err != nil:
		return store.Info{}, fmt.Errorf("store: %s has no readable format version: %w", path, err)
	case have > format:
		return store.Info{}, fmt.Errorf("%w: %s has format %d, this program knows up to %d: run the newer program",
			store.ErrFormat, path, have, format)
	}
	return store.Info{ID: string(meta.Get(keyID)), Format: have, Engine: engineName}, nil
}

// openFile opens the bbolt file and turns what can go wrong into clear errors.
func openFile(path string, mmapSize int) (db *bbolt.DB, err error) {
	return openWith(path, &bbolt.Options{
		Timeout:         lockWait,
		InitialMmapSize: mmapSize,
		FreelistType:    bbolt.FreelistMapType,
		NoStatistics:    true,
	})
}

func openWith(path string, o *bbolt.Options) (db *bbolt.DB, err error) {
	err = guard(path, func() (err error) {
		db, err = bbolt.Open(path, 0o600, o)
		return err
	})
	switch {
	case errors.Is(err, errDamaged):
		return nil, err
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("%w: %s: stop the other process or use another data_dir", store.ErrLocked, path)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return nil, fmt.Errorf("store: %s is damaged or not a store: %w: restore a backup or move it away", path, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("store: %s must be readable and writable by uid %d: %w", path, os.Getuid(), err)
	case errors.Is(err, syscall.ENOMEM):
		return nil, fmt.Errorf("store: no address space to map %s: lower mmap_size or raise the limit on virtual memory: %w", path, err)
	case err != nil:
		return nil, fmt.Errorf("store: opening %s: %w", path, err)
	}
	return db, nil
}

var errDamaged = errors.New("restore a backup")

// guard runs fn over a file that may be damaged, which makes bbolt panic or
// fault in its memory map.
func guard(path string, fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("store: %s is damaged: %v: %w", path, r, errDamaged)
		}
	}()
	return fn()
}

// checkMode refuses a file that others may change and warns of one that they
// may read: it holds who may have which identity. Group access is only warned
// of, because Kubernetes (fsGroup) grants it to volumes by itself.
func checkMode(path string, info fs.FileInfo, log *slog.Logger) error {
	mode := info.Mode()
	switch {
	case !mode.IsRegular():
		return fmt.Errorf("store: %s is not a regular file", path)
	case info.Size() == 0:
		return fmt.Errorf("store: %s is empty: restore a backup, or remove it to start anew", path)
	case mode.Perm()&0o002 != 0:
		return fmt.Errorf("store: %s has mode %04o, which lets everybody change it: chmod 0600", path, mode.Perm())
	case mode.Perm()&0o077 != 0:
		log.Warn("Store file is open to other users", telemetry.Path, path,
			telemetry.Reason, fmt.Sprintf("mode %04o, should be 0600", mode.Perm()))
	}
	return nil
}

// checkSize refuses a file that was cut short: reading beyond its end would
// kill the process.
func checkSize(tx *bbolt.Tx, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if info.Size() < tx.Size() {
		return fmt.Errorf("store: %s is damaged: it has %d bytes of %d: %w", path, info.Size(), tx.Size(), errDamaged)
	}
	return nil
}

// syncDir makes a new name in a directory survive a crash.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("store: syncing directory %s: %w", dir, err)
	}
	err = errors.Join(d.Sync(), d.Close())
	if err != nil {
		return fmt.Errorf("store: syncing directory %s: %w", dir, err)
	}
	return nil
}
