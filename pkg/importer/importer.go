package importer

import (
	"context"
	"errors"
	"fmt"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"google.golang.org/grpc"
)

// ErrIncomplete says that the two servers are not alike after a run: problems
// were reported one by one.
var ErrIncomplete = errors.New("not everything was copied")

// Config is what to copy, from where, and whom to tell.
type Config struct {
	// From and To are connections to the admin sockets.
	From, To grpc.ClientConnInterface
	// DryRun compares and writes nothing.
	DryRun bool
	// Overwrite lets what is different on To be replaced; otherwise it is a
	// problem.
	Overwrite bool
	// What to leave out.
	NoAuthorities, NoFederation, NoEntries bool

	// Problem is told each item that could not be copied, and why. Nil: nobody.
	Problem func(what, id, reason string)
	// Warn is told what an operator should know. Nil: nobody.
	Warn func(text string)
	// Begin is told when a stage begins, with the number of its items if it is
	// known, and Step how many more are done. Nil: nobody.
	Begin func(stage string, total int)
	Step  func(n int)
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
}

// Report is what a run did, or would do.
type Report struct {
	TrustDomain   string      `json:"trust_domain"`
	DryRun        bool        `json:"dry_run"`
	Authorities   *Appended   `json:"authorities,omitempty"`
	Bundles       *Comparison `json:"bundles,omitempty"`
	Relationships *Comparison `json:"federation_relationships,omitempty"`
	Entries       *Comparison `json:"entries,omitempty"`
	// Changes is how many items and authorities were written.
	Changes int `json:"changes"`
	// Problems is how many items could not be copied.
	Problems int `json:"problems"`
}

// Appended is how many authorities of each server were new to the other.
type Appended struct {
	X509Here  int  `json:"x509_added_here"`
	X509There int  `json:"x509_added_there"`
	JWTHere   int  `json:"jwt_added_here"`
	JWTThere  int  `json:"jwt_added_there"`
	Verified  bool `json:"verified"` // each bundle was read back and has them all
}

// Comparison is what became of the items of one kind.
type Comparison struct {
	There    int `json:"there"` // on From
	Same     int `json:"same"`  // were on To already, alike
	Created  int `json:"created"`
	Updated  int `json:"updated"`   // were different on To and were replaced
	Failed   int `json:"failed"`    // could not be copied, or are different
	Expired  int `json:"expired"`   // on From, and not copied
	OnlyHere int `json:"only_here"` // on To and not on From; left alone
	// The SHA-256, in hexadecimal, over what was to be copied, as From and as To
	// have it at the end: every field but revision_number, created_at and a
	// bundle's sequence_number, which each server counts for itself.
	DigestThere string `json:"digest_there"`
	DigestHere  string `json:"digest_here"`
	Verified    bool   `json:"verified"` // the digests are equal
}

type run struct {
	Config
	report *Report
}

// Run copies. It returns a report also with ErrIncomplete; any other error ends
// the run where it is, and running again goes on from there.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	r := &run{Config: cfg.withDefaults(), report: &Report{DryRun: cfg.DryRun}}
	if err := r.sameTrustDomain(ctx); err != nil {
		return nil, err
	}
	// Bundles come before the entries that name them, and authorities before
	// everything: they are what identities in use depend on.
	for _, stage := range []struct {
		skip bool
		do   func(context.Context) error
	}{
		{r.NoAuthorities, r.authorities},
		{r.NoFederation, r.bundles},
		{r.NoFederation, r.relationships},
		{r.NoEntries, r.entries},
	} {
		if stage.skip {
			continue
		}
		if err := stage.do(ctx); err != nil {
			return r.report, err
		}
	}
	if r.report.Problems > 0 {
		return r.report, ErrIncomplete
	}
	return r.report, nil
}

func (c Config) withDefaults() Config {
	if c.Problem == nil {
		c.Problem = func(string, string, string) {}
	}
	if c.Warn == nil {
		c.Warn = func(string) {}
	}
	if c.Begin == nil {
		c.Begin = func(string, int) {}
	}
	if c.Step == nil {
		c.Step = func(int) {}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// problem counts and tells an item that could not be copied.
func (r *run) problem(what, id, reason string) {
	r.report.Problems++
	r.Problem(what, id, reason)
}

func (r *run) sameTrustDomain(ctx context.Context) error {
	var names [2]string
	for i, conn := range []grpc.ClientConnInterface{r.From, r.To} {
		b, err := bundlev1.NewBundleClient(conn).GetBundle(ctx, &bundlev1.GetBundleRequest{})
		if err != nil {
			return fmt.Errorf("reading the bundle of %s: %w", sides[i], err)
		}
		names[i] = b.GetTrustDomain()
	}
	if names[0] != names[1] {
		return fmt.Errorf("the servers are of different trust domains, %q there and %q here: entries and authorities of one mean nothing to the other", names[0], names[1])
	}
	r.report.TrustDomain = names[0]
	return nil
}

// sides are the words for From and To.
var sides = [2]string{"the server to import from", "this server"}
