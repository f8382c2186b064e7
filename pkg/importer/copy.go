package importer

import (
	"context"
	"fmt"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// maxCall bounds the items of one call, in bytes, below gRPC's usual 4 MB.
const maxCall = 1 << 20

// kind is one kind of item and the calls about it.
type kind[T proto.Message] struct {
	name, plural string
	batch        int // how many are written by one call
	id           func(T) string
	canonical    func(T) T
	expired      func(T) bool // nil: none ever is
	list         func(ctx context.Context, conn grpc.ClientConnInterface, token string) (page []T, next string, err error)
	get          func(ctx context.Context, conn grpc.ClientConnInterface, id string) (T, error)
	// create and update return a result for each item.
	create, update func(ctx context.Context, conn grpc.ClientConnInterface, items []T) ([]result, error)
}

// result is what became of an item that was written.
type result struct {
	status *types.Status
	note   string // added to the reason if it failed
}

// copying is one kind on its way from one server to the other.
type copying[T proto.Message] struct {
	*run
	kind[T]
	out         *Comparison
	here, there map[string]digest
	failed      map[string]bool // what was reported already

	toCreate, toUpdate []T
}

// copyAll makes To have what From has of a kind, and compares both at the end.
func copyAll[T proto.Message](ctx context.Context, r *run, k kind[T]) (*Comparison, error) {
	c := &copying[T]{run: r, kind: k, out: &Comparison{}, failed: map[string]bool{}}
	var err error
	r.Begin("reading the "+k.plural+" that are here", 0)
	if c.here, _, err = c.scan(ctx, r.To, nil); err != nil {
		return c.out, fmt.Errorf("listing the %s of %s: %w", k.plural, sides[1], err)
	}
	r.Begin("copying "+k.plural, 0)
	if c.there, c.out.Expired, err = c.scan(ctx, r.From, c.visit); err == nil {
		err = c.flush(ctx, 0)
	}
	if err != nil {
		return c.out, fmt.Errorf("copying %s: %w", k.plural, err)
	}
	if err := c.verify(ctx); err != nil {
		return c.out, fmt.Errorf("comparing the %s: %w", k.plural, err)
	}
	return c.out, nil
}

// scan reads all items of a server, page by page, and returns their digests by
// ID, without those that have expired, which it counts.
func (c *copying[T]) scan(ctx context.Context, conn grpc.ClientConnInterface, visit func(context.Context, T, digest) error) (all map[string]digest, expired int, err error) {
	all = map[string]digest{}
	for token := ""; ; {
		page, next, err := c.list(ctx, conn, token)
		if err != nil {
			return nil, 0, err
		}
		for _, item := range page {
			if c.expired != nil && c.expired(item) {
				expired++
				continue
			}
			d, err := digestOf(c.canonical(item))
			if err != nil {
				return nil, 0, err
			}
			all[c.id(item)] = d
			if visit == nil {
				continue
			}
			if err := visit(ctx, item, d); err != nil {
				return nil, 0, err
			}
		}
		c.Step(len(page))
		if token = next; token == "" {
			return all, expired, nil
		}
	}
}

// visit decides what becomes of one item of From.
func (c *copying[T]) visit(ctx context.Context, item T, d digest) error {
	have, found := c.here[c.id(item)]
	switch {
	case !found:
		c.toCreate = append(c.toCreate, item)
	case have == d:
		c.out.Same++
	case c.Overwrite:
		c.toUpdate = append(c.toUpdate, item)
	default:
		return c.reportDifference(ctx, c.id(item), "use -overwrite to take what is there")
	}
	return c.flush(ctx, c.batch)
}

// flush writes what waits, if that is at least atLeast items.
func (c *copying[T]) flush(ctx context.Context, atLeast int) error {
	if n := len(c.toCreate); n > 0 && n >= atLeast {
		if err := c.write(ctx, c.toCreate, c.create, &c.out.Created); err != nil {
			return err
		}
		c.toCreate = nil
	}
	if n := len(c.toUpdate); n > 0 && n >= atLeast {
		if err := c.write(ctx, c.toUpdate, c.update, &c.out.Updated); err != nil {
			return err
		}
		c.toUpdate = nil
	}
	return nil
}

// write writes items by calls of at most maxCall bytes.
func (c *copying[T]) write(ctx context.Context, items []T, call func(context.Context, grpc.ClientConnInterface, []T) ([]result, error), done *int) error {
	if c.DryRun {
		*done += len(items)
		return nil
	}
	for len(items) > 0 {
		n, size := 1, proto.Size(items[0])
		for n < len(items) && size+proto.Size(items[n]) <= maxCall {
			size += proto.Size(items[n])
			n++
		}
		if err := c.writeCall(ctx, items[:n], call, done); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

func (c *copying[T]) writeCall(ctx context.Context, items []T, call func(context.Context, grpc.ClientConnInterface, []T) ([]result, error), done *int) error {
	results, err := call(ctx, c.To, items)
	if err != nil {
		return err
	}
	if len(results) != len(items) {
		return fmt.Errorf("%d results for %d %s", len(results), len(items), c.plural)
	}
	for i, res := range results {
		if codes.Code(res.status.GetCode()) == codes.OK {
			*done++
			c.report.Changes++
			continue
		}
		c.fail(c.id(items[i]), res.status.GetMessage()+res.note)
	}
	return nil
}

func (c *copying[T]) fail(id, reason string) {
	c.out.Failed++
	c.failed[id] = true
	c.problem(c.name, id, reason)
}

// reportDifference reads an item of both servers and names the fields.
func (c *copying[T]) reportDifference(ctx context.Context, id, hint string) error {
	there, err := c.get(ctx, c.From, id)
	if status.Code(err) == codes.NotFound {
		return nil // Deleted just now.
	}
	if err != nil {
		return fmt.Errorf("reading %s %s: %w", c.name, id, err)
	}
	here, err := c.get(ctx, c.To, id)
	if err != nil && status.Code(err) != codes.NotFound {
		return fmt.Errorf("reading %s %s: %w", c.name, id, err)
	}
	if err != nil {
		c.fail(id, "it is not here")
		return nil
	}
	if fields := differing(c.canonical(there), c.canonical(here)); fields != "" {
		c.fail(id, "it is different here, in "+fields+"; "+hint)
	}
	return nil
}

// verify compares what both servers have now; in a dry run, what they had.
func (c *copying[T]) verify(ctx context.Context) error {
	if !c.DryRun {
		c.Begin("comparing "+c.plural, 0)
		var err error
		if c.there, c.out.Expired, err = c.scan(ctx, c.From, nil); err != nil {
			return err
		}
		if c.here, _, err = c.scan(ctx, c.To, nil); err != nil {
			return err
		}
	}
	c.out.There = len(c.there)
	copied := make(map[string]digest, len(c.there))
	for id, d := range c.here {
		want, found := c.there[id]
		if !found {
			c.out.OnlyHere++
			continue
		}
		copied[id] = d
		if d == want || c.DryRun || c.failed[id] {
			continue
		}
		if err := c.reportDifference(ctx, id, "it changed meanwhile; run this again"); err != nil {
			return err
		}
	}
	if !c.DryRun {
		for id := range c.there {
			if _, found := copied[id]; !found && !c.failed[id] {
				c.fail(id, "it came while this ran; run this again")
			}
		}
	}
	c.out.DigestThere, c.out.DigestHere = sum(c.there), sum(copied)
	c.out.Verified = c.out.DigestThere == c.out.DigestHere
	return nil
}
