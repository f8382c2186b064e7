package etcd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/credence-id/credence/pkg/store"
	"github.com/credence-id/credence/pkg/store/etcd"
	"github.com/credence-id/credence/pkg/store/etcd/etcdtest"
)

func putBig(t testing.TB, s store.Store, n int) error {
	_, err := s.Update(t.Context(), func(tx store.RWTx) error {
		tx.Put(fmt.Sprintf("big/%d", n), bytes.Repeat([]byte("x"), 500_000))
		return nil
	})
	return err
}

// wantUnavailable checks an error that an operator will read.
func wantUnavailable(t testing.TB, what string, err error, says ...string) {
	t.Helper()
	if !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("%s: %v, want %v", what, err, store.ErrUnavailable)
		return
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%s: no %q in: %v", what, s, err)
		}
	}
}

// available is the gauge of that name.
func available(t testing.TB, reg *prometheus.Registry) float64 {
	t.Helper()
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == "credence_store_available" {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatal("there is no credence_store_available")
	return -1
}

// TestQuota fills etcd: it reads and does not write, says so, and goes on by
// itself once the operator has made room.
func TestQuota(t *testing.T) {
	t.Parallel()
	endpoint := etcdtest.New(t, etcdtest.Quota(16<<20))
	var log bytes.Buffer
	reg := prometheus.NewRegistry()
	cfg := etcd.Config{Endpoints: []string{endpoint}, History: -1, Registerer: reg, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	s := open(t, cfg)
	var full error
	for n := 0; full == nil && n < 100; n++ {
		full = putBig(t, s, n)
	}
	wantUnavailable(t, "Update beyond the quota", full, "nothing was written", "alarm disarm", "quota-backend-bytes")
	wantUnavailable(t, "Check beyond the quota", s.Check(t.Context()), "alarm disarm")
	if got := available(t, reg); got != 0 {
		t.Errorf("credence_store_available is %v beyond the quota", got)
	}
	if _, err := s.Head(t.Context()); err != nil {
		t.Errorf("Head beyond the quota: %v", err)
	}
	if err := s.View(t.Context(), func(tx store.Tx) error { _, err := tx.Get("big/1"); return err }); err != nil {
		t.Errorf("View beyond the quota: %v", err)
	}
	// What the operator does.
	cli := etcdtest.NewClient(t, endpoint)
	defer cli.Close()
	gone, err := cli.Delete(t.Context(), "/credence/k/big/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cli.Compact(t.Context(), gone.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if _, err := cli.Defragment(t.Context(), endpoint); err != nil {
		t.Fatal(err)
	}
	if _, err := cli.AlarmDisarm(t.Context(), &clientv3.AlarmMember{Alarm: pb.AlarmType_NONE}); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(t.Context()); err != nil {
		t.Errorf("Check after making room: %v", err)
	}
	if err := putBig(t, s, 0); err != nil {
		t.Errorf("Update after making room: %v", err)
	}
	if got := available(t, reg); got != 1 {
		t.Errorf("credence_store_available is %v after making room", got)
	}
	for _, want := range []string{"etcd does not take commits", "etcd takes commits again"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q: %s", want, &log)
		}
	}
}

// TestCutOff lets nothing through between this process and etcd: calls end in
// time with what is wrong, watchers wait, and all goes on when it is over.
func TestCutOff(t *testing.T) {
	t.Parallel()
	link := etcdtest.NewLink(t, etcdtest.Start(t))
	cfg := fresh(t)
	there := open(t, cfg) // Another process, which is not cut off.
	cfg.Endpoints, cfg.RequestTimeout = link.Endpoints(), time.Second
	reg := prometheus.NewRegistry()
	cfg.Registerer = reg
	s := open(t, cfg)
	put := func(s store.Store, value string) error {
		_, err := s.Update(t.Context(), func(tx store.RWTx) error { tx.Put("k", []byte(value)); return nil })
		return err
	}
	if err := put(s, "before"); err != nil {
		t.Fatal(err)
	}
	at, err := s.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	link.Cut()
	begin := time.Now()
	_, err = s.Head(t.Context())
	wantUnavailable(t, "Head", err, "in etcd")
	wantUnavailable(t, "View", s.View(t.Context(), func(store.Tx) error { return nil }))
	wantUnavailable(t, "Update", put(s, "meanwhile"))
	wantUnavailable(t, "Check", s.Check(t.Context()))
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("four calls took %v to fail", took)
	}
	if got := available(t, reg); got != 0 {
		t.Errorf("credence_store_available is %v while cut off", got)
	}
	if err := put(there, "elsewhere"); err != nil {
		t.Fatal(err)
	}
	link.Heal()
	for b, err := range s.Watch(t.Context(), "", at) {
		if err != nil || string(b.Events[0].Value) != "elsewhere" {
			t.Errorf("the watch goes on with %+v, %v", b, err)
		}
		break
	}
	if err := put(s, "afterwards"); err != nil {
		t.Errorf("Update afterwards: %v", err)
	}
	if err := s.Check(t.Context()); err != nil || available(t, reg) != 1 {
		t.Errorf("Check afterwards: %v; credence_store_available is %v", err, available(t, reg))
	}
}

// TestSlow has answers come later than request_timeout.
func TestSlow(t *testing.T) {
	t.Parallel()
	link := etcdtest.NewLink(t, etcdtest.Start(t))
	cfg := fresh(t)
	cfg.Endpoints, cfg.RequestTimeout = link.Endpoints(), 300*time.Millisecond
	s := open(t, cfg)
	link.Slow(2 * time.Second)
	begin := time.Now()
	_, err := s.Head(t.Context())
	wantUnavailable(t, "Head", err, "request_timeout")
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v to fail", took)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Head(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Head whose own time is over: %v", err)
	}
	link.Slow(0)
	for {
		if err = s.Check(t.Context()); err == nil || !errors.Is(err, store.ErrUnavailable) {
			break
		}
	}
	if err != nil {
		t.Errorf("Check afterwards: %v", err)
	}
}

// TestCredentials tries users of etcd that are not there, may not, and may.
func TestCredentials(t *testing.T) {
	t.Parallel()
	endpoint := etcdtest.New(t)
	cli := etcdtest.NewClient(t, endpoint)
	defer cli.Close()
	ctx := t.Context()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, user := range []string{"root", "credence", "other"} {
		must(cli.UserAdd(ctx, user, "secret-of-"+user))
	}
	must(cli.UserGrantRole(ctx, "root", "root"))
	must(cli.RoleAdd(ctx, "credence"))
	must(cli.RoleGrantPermission(ctx, "credence", "/credence/", clientv3.GetPrefixRangeEnd("/credence/"), clientv3.PermissionType(clientv3.PermReadWrite)))
	must(cli.UserGrantRole(ctx, "credence", "credence"))
	must(cli.AuthEnable(ctx))

	try := func(user, password string) error {
		s, err := etcd.Open(ctx, etcd.Config{Endpoints: []string{endpoint}, Username: user, Password: password, DialTimeout: 5 * time.Second, RequestTimeout: time.Second, History: -1})
		if err == nil {
			must(nil, s.Close())
		} else if strings.Contains(err.Error(), "secret-of") {
			t.Errorf("the error has the password: %v", err)
		}
		return err
	}
	wantUnavailable(t, "nobody", try("nobody", "secret-of-nobody"), "username and password")
	wantUnavailable(t, "a wrong password", try("credence", "secret-of-other"), "username and password")
	wantUnavailable(t, "no user", try("", ""), "username and password")
	wantUnavailable(t, "a user without permission", try("other", "secret-of-other"), "readwrite")
	if err := try("credence", "secret-of-credence"); err != nil {
		t.Errorf("the right user: %v", err)
	}

	// While it runs: the permission goes and comes back.
	s := open(t, etcd.Config{Endpoints: []string{endpoint}, Username: "credence", Password: "secret-of-credence", History: -1})
	if err := putBig(t, s, 0); err != nil {
		t.Fatal(err)
	}
	root, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Username: "root", Password: "secret-of-root", DialTimeout: time.Minute})
	must(nil, err)
	defer root.Close()
	must(root.UserRevokeRole(ctx, "credence", "credence"))
	wantUnavailable(t, "Update without permission", putBig(t, s, 1), "readwrite")
	must(root.UserGrantRole(ctx, "credence", "credence"))
	if err := putBig(t, s, 2); err != nil {
		t.Errorf("Update with the permission back: %v", err)
	}
	l, err := s.Lock(ctx, "a lock")
	must(nil, err)
	l.Unlock()
}

// TestTLS opens with certificates and without.
func TestTLS(t *testing.T) {
	t.Parallel()
	certs, others := etcdtest.NewCerts(t), etcdtest.NewCerts(t)
	endpoint := etcdtest.New(t, etcdtest.TLS(certs))
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good := etcd.Config{
		Endpoints: []string{endpoint}, CAFile: certs.CA, CertFile: certs.ClientCert, KeyFile: certs.ClientKey,
		DialTimeout: time.Second, RequestTimeout: 500 * time.Millisecond, History: -1,
	}
	for name, c := range map[string]struct {
		change func(*etcd.Config)
		says   string
		static bool // Check says it too.
	}{
		"right": {change: func(*etcd.Config) {}},
		"not encrypted": {func(c *etcd.Config) {
			c.Endpoints = []string{"http" + strings.TrimPrefix(endpoint, "https")}
			c.CAFile, c.CertFile, c.KeyFile = "", "", ""
		}, "look at the endpoints, the network and TLS", false},
		"authority of another":     {func(c *etcd.Config) { c.CAFile = others.CA }, "certificate signed by unknown authority", false},
		"the system's authorities": {func(c *etcd.Config) { c.CAFile = "" }, "certificate signed by unknown authority", false},
		"no certificate":           {func(c *etcd.Config) { c.CertFile, c.KeyFile = "", "" }, "TLS", false},
		"certificate of another":   {func(c *etcd.Config) { c.CertFile, c.KeyFile = others.ClientCert, others.ClientKey }, "TLS", false},
		"no such file":             {func(c *etcd.Config) { c.CAFile = "/nowhere/ca.pem" }, "ca_file cannot be read", true},
		"an empty file":            {func(c *etcd.Config) { c.CAFile = empty }, "holds no certificate", true},
		"keys that do not fit":     {func(c *etcd.Config) { c.KeyFile = others.ClientKey }, "cert_file and key_file cannot be used", true},
		"certificate without key":  {func(c *etcd.Config) { c.KeyFile = "" }, "belong together", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := good
			c.change(&cfg)
			if err := etcd.Check(cfg); (err != nil) != c.static {
				t.Errorf("Check: %v", err)
			}
			s, err := etcd.Open(t.Context(), cfg)
			switch {
			case c.says == "" && err != nil:
				t.Errorf("Open: %v", err)
			case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)):
				t.Errorf("Open: %v, want it to say %q", err, c.says)
			}
			if err == nil {
				if err := errors.Join(s.Check(t.Context()), s.Close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
