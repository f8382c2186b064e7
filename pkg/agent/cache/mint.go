package cache

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/credence-id/credence/pkg/keys"
	"github.com/credence-id/credence/pkg/telemetry"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// mintWorkers call the server at the same time; the first of them only for
	// SVIDs that workloads are waiting for.
	mintWorkers = 4
	// maxBatch is the most SVIDs of one call.
	maxBatch = 500
	// maxBatchRSA is that for keys that take a tenth of a second to make.
	maxBatchRSA = 8
	// mintTimeout bounds one call.
	mintTimeout = 30 * time.Second
	// taintedPause is before the next attempt when the server has signed with
	// an authority that is tainted.
	taintedPause = 15 * time.Second
)

// job is one record's part of a call to the server.
type job struct {
	r       *record
	entry   *entry
	edition int
	key     crypto.Signer
	der     []byte // the key, PKCS#8
	svid    *x509SVID
	err     error
}

// enqueue has the record minted for, before others if a workload wants it.
func (c *Cache) enqueue(r *record) {
	switch {
	case r.state == minting || r.state == queuedUrgent:
		return
	case r.demand > 0:
		r.state = queuedUrgent
		c.urgent = append(c.urgent, r)
		c.work.Broadcast()
	case r.state == idle:
		r.state = queued
		c.patient = append(c.patient, r)
		c.work.Broadcast()
	}
}

func (c *Cache) mintLoop(ctx context.Context, urgentOnly bool) error {
	for {
		jobs := c.take(ctx, urgentOnly)
		if jobs == nil {
			return nil
		}
		c.mint(ctx, jobs)
	}
}

// take waits for records to mint for; it returns nil when ctx has ended. Before
// the first sync nothing is minted: what an earlier run left may be out of date.
func (c *Cache) take(ctx context.Context, urgentOnly bool) []*job {
	limit := maxBatch
	if c.cfg.KeyType == keys.RSA2048 || c.cfg.KeyType == keys.RSA4096 {
		limit = maxBatchRSA
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for ctx.Err() == nil {
		var jobs []*job
		if c.phase.Load().synced {
			jobs = drain(jobs, &c.urgent, queuedUrgent, limit)
		}
		if c.phase.Load().synced && !urgentOnly {
			jobs = drain(jobs, &c.patient, queued, limit)
		}
		if len(jobs) > 0 {
			for _, j := range jobs {
				c.schedule(j.r)
			}
			return jobs
		}
		c.work.Wait()
	}
	return nil
}

// drain takes records from a queue that are still in the state they were queued
// in.
func drain(jobs []*job, queue *[]*record, in mintState, limit int) []*job {
	q := *queue
	for len(q) > 0 && len(jobs) < limit {
		if r := q[0]; r.state == in {
			r.state = minting
			jobs = append(jobs, &job{r: r, entry: r.entry, edition: r.edition})
		}
		q[0], q = nil, q[1:]
	}
	if len(q) == 0 {
		q = nil
	}
	*queue = q
	return jobs
}

// mint makes the keys, calls the server and takes up what it answers.
func (c *Cache) mint(ctx context.Context, jobs []*job) {
	start := time.Now()
	err := c.sign(ctx, jobs)
	now := time.Now()
	if err != nil && ctx.Err() == nil {
		c.log.Warn("minting X509-SVIDs", telemetry.Err, err, telemetry.Count, len(jobs))
	}
	c.metrics.minted(jobs, err, now.Sub(start))
	for _, j := range jobs {
		if err != nil {
			j.err = err
		} else if j.err != nil {
			c.log.Warn("minting an X509-SVID", telemetry.EntryID, j.entry.id, telemetry.SPIFFEID, j.entry.spiffeID, telemetry.Err, j.err)
		}
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	shared := retryAfter(jobs[0].r.tries + 1) // so that what failed together is tried together
	for _, j := range jobs {
		c.minted(j, now, shared)
	}
	c.settled(now)
	c.changed(true)
}

// sign fills in the jobs. The error is one of all of them.
func (c *Cache) sign(ctx context.Context, jobs []*job) error {
	reqs := make([]X509Request, 0, len(jobs))
	for _, j := range jobs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		csr, err := j.prepare(c.cfg.KeyType)
		if err != nil {
			return err
		}
		reqs = append(reqs, X509Request{EntryID: j.entry.id, CSR: csr})
	}
	ctx, cancel := context.WithTimeout(ctx, mintTimeout)
	defer cancel()
	results, err := c.cfg.Minter.MintX509(ctx, reqs)
	if err != nil {
		return err
	}
	if len(results) != len(jobs) {
		return fmt.Errorf("the server answered with %d X509-SVIDs for %d requests", len(results), len(jobs))
	}
	now := time.Now()
	for i, j := range jobs {
		if j.err = results[i].Err; j.err == nil {
			j.svid, j.err = newX509SVID(j.entry.spiffeID, results[i].Chain, j.key, j.der, now)
		}
	}
	return nil
}

// prepare makes the key and the request for it.
func (j *job) prepare(t keys.Type) (csr []byte, err error) {
	if j.key, err = generateKey(t); err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	if j.der, err = x509.MarshalPKCS8PrivateKey(j.key); err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	// The server takes the public key from it and nothing else.
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, j.key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate request: %w", err)
	}
	return csr, nil
}

func generateKey(t keys.Type) (crypto.Signer, error) {
	switch t {
	case keys.ECP256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case keys.ECP384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case keys.RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case keys.RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, fmt.Errorf("%v is not supported", t)
}

// newX509SVID checks that the certificate is the one asked for.
func newX509SVID(id spiffeid.ID, chain [][]byte, key crypto.Signer, der []byte, issued time.Time) (*x509SVID, error) {
	s := &x509SVID{key: der, chain: bytes.Join(chain, nil)}
	certs, err := x509.ParseCertificates(s.chain)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the server's certificate chain: %w", err)
	case len(certs) == 0:
		return nil, errors.New("the server's certificate chain is empty")
	}
	leaf := certs[0]
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != id.String() {
		return nil, fmt.Errorf("the server's certificate is not for %s", id)
	}
	pub, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(key.Public()) {
		return nil, errors.New("the server's certificate is for another key")
	}
	for _, cert := range certs {
		if len(cert.AuthorityKeyId) > 0 {
			s.issuers = append(s.issuers, string(cert.AuthorityKeyId))
		}
	}
	s.notAfter = leaf.NotAfter
	s.issued = issued
	if leaf.NotBefore.After(issued) {
		s.issued = leaf.NotBefore
	}
	if !issued.Before(s.notAfter) {
		return nil, fmt.Errorf("the server's certificate has ended at %s, %s ago: is this machine's clock right?",
			s.notAfter.UTC().Format(time.RFC3339), issued.Sub(s.notAfter).Round(time.Second))
	}
	return s, nil
}

// minted takes up one result.
func (c *Cache) minted(j *job, now time.Time, retry time.Duration) {
	r := j.r
	r.state = idle
	switch {
	case r.gone || !r.kept:
		return
	case r.edition != j.edition:
		// Asked for too early: the entry has changed meanwhile.
		c.enqueue(r)
		return
	case j.err != nil:
		r.fresh = false
		r.failed = j.err
		r.tries++
		r.mintAt = now.Add(retry)
		if r.shown != nil && r.shown.spiffeID != r.entry.spiffeID {
			r.svid, r.shown = nil, nil // an identity that is not the entry's any more
		}
		if r.svid != nil {
			r.shown = r.entry
		}
	default:
		r.fresh, r.failed, r.tries = false, nil, 0
		r.svid, r.shown = j.svid, r.entry
		r.mintAt = c.rotateAt(j.svid)
		if b := c.bundles[c.cfg.TrustDomain.Name()]; b != nil && b.tainted(j.svid) {
			r.mintAt = earlier(r.mintAt, now.Add(taintedPause+jitter(taintedPause/3)))
		}
	}
	c.touch(r)
	c.schedule(r)
}
