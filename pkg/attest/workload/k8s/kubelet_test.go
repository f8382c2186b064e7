package k8s

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/pkg/attest/workload/k8stest"
	"github.com/google/go-cmp/cmp"
)

// asking is the configuration for a kubelet.
func asking(k *k8stest.Kubelet) Config {
	cfg := Config{PodSource: sourceKubelet, NodeNameEnv: "NO_SUCH_VARIABLE", PollRetryInterval: 10 * time.Millisecond}
	if k.CAPath == "" {
		cfg.KubeletReadOnlyPort = k.Port
	} else {
		cfg.KubeletSecurePort, cfg.KubeletCAPath, cfg.TokenPath = k.Port, k.CAPath, k.TokenPath
	}
	return cfg
}

// TestKubeletIsAskedOnce for all who wait.
func TestKubeletIsAskedOnce(t *testing.T) {
	t.Parallel()
	k := k8stest.NewKubelet(t, true)
	k.SetPods(onePod(), twoPod())
	release := k.Hold()
	defer release()
	cfg := asking(k)
	cfg.PollRetryInterval = time.Hour
	a := start(t, cfg, Options{})
	ctx := patient(t)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			uid, container := uidOne, id("1")
			if i%2 == 1 {
				uid, container = uidTwo, id("2")
			}
			if _, _, err := a.Attest(ctx, process(uid, container)); err != nil {
				t.Error(err)
			}
		})
	}
	release()
	wg.Wait()
	if n := k.Requests(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// TestKubeletIsAskedAgain for a pod that it does not have yet, at most so often.
func TestKubeletIsAskedAgain(t *testing.T) {
	t.Parallel()
	k := k8stest.NewKubelet(t, false)
	a := start(t, asking(k), Options{})
	done := make(chan error, 1)
	ctx := patient(t)
	go func() {
		_, _, err := a.Attest(ctx, process(uidOne, id("1")))
		done <- err
	}()
	for k.Requests() < 3 {
		time.Sleep(time.Millisecond) // the kubelet is somebody else's: there is no event to wait for
	}
	k.SetPods(onePod())
	if err := <-done; err != nil {
		t.Error(err)
	}

	cfg := asking(k)
	cfg.MaxPollAttempts = 4
	before := k.Requests()
	a = start(t, cfg, Options{})
	if _, _, err := a.Attest(ctx, process(uidTwo, id("2"))); err == nil || ctx.Err() != nil {
		t.Errorf("a pod that is not there: %v, %v", err, ctx.Err())
	}
	if n := k.Requests() - before; n < 4 || n > 5 {
		t.Errorf("%d requests", n)
	}
}

// TestKubeletTellsOfChanges when it is asked the next time, for whoever.
func TestKubeletTellsOfChanges(t *testing.T) {
	t.Parallel()
	k := k8stest.NewKubelet(t, true)
	k.SetPods(onePod(), twoPod())
	a := start(t, asking(k), Options{})
	_, one := attestNow(t, a, uidOne, id("1"))
	p := onePod()
	p.Labels["app"] = "other"
	k.SetPods(p, twoPod())
	time.Sleep(a.kubelet.every) // what it said before is used for so long
	attestNow(t, a, uidTwo, id("2"))
	awaitClosed(t, one)
}

// TestKubeletRestarts: its list is incomplete for a while, and pods that were
// known stay so.
func TestKubeletRestarts(t *testing.T) {
	t.Parallel()
	s := newPods(false, false)
	now := time.Now()
	object := func(uid string) *pod { return &pod{uid: uid, starting: true, facts: set("x:" + uid)} }
	s.replaceLoosely([]*pod{object("a"), object("b")}, now)
	first := s.look(place{pod: "a", container: "1"})
	if first.verdict != answered {
		t.Fatal(first.verdict)
	}
	s.replaceLoosely(nil, now.Add(time.Minute))
	s.replaceLoosely(nil, now.Add(time.Minute+absentGrace-1))
	isOpen(t, first.answer.changed)
	s.replaceLoosely([]*pod{object("a")}, now.Add(2*time.Minute))
	s.replaceLoosely(nil, now.Add(3*time.Minute))
	isOpen(t, first.answer.changed)
	if s.look(place{pod: "b"}).verdict != unknown {
		t.Error("b was never forgotten")
	}
	s.replaceLoosely(nil, now.Add(3*time.Minute+absentGrace))
	awaitClosed(t, first.answer.changed)
	if v := s.look(place{pod: "a"}).verdict; v != unknown {
		t.Errorf("a is %v", v)
	}
}

// TestKubeletAuthentication: each way to know each other.
func TestKubeletAuthentication(t *testing.T) {
	t.Parallel()
	k := k8stest.NewKubelet(t, true, "localhost")
	k.SetPods(onePod())
	other := k8stest.NewKubelet(t, true)
	nothing := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(nothing, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string // in the refusal; empty: it is none
	}{
		"token":                   {change: func(*Config) {}},
		"by name":                 {change: func(c *Config) { c.NodeName = "localhost" }},
		"not verified":            {change: func(c *Config) { c.SkipKubeletVerification, c.KubeletCAPath = true, "" }},
		"client certificate":      {change: func(c *Config) { c.CertificatePath, c.PrivateKeyPath = k.ClientCertPath, k.ClientKeyPath }},
		"another authority":       {change: func(c *Config) { c.KubeletCAPath = other.CAPath }, want: "certificate"},
		"another authority, name": {change: func(c *Config) { c.KubeletCAPath, c.NodeName = other.CAPath, "localhost" }, want: "certificate"},
		"anonymous":               {change: func(c *Config) { c.UseAnonymousAuthentication = true }, want: "401 Unauthorized"},
		"no token":                {change: func(c *Config) { c.TokenPath = "/nowhere/token" }, want: "/nowhere/token"},
		"empty token":             {change: func(c *Config) { c.TokenPath = nothing }, want: "is empty"},
		"no authorities":          {change: func(c *Config) { c.KubeletCAPath = c.TokenPath }, want: "has no certificate"},
		"no certificate":          {change: func(c *Config) { c.CertificatePath, c.PrivateKeyPath = k.CAPath, k.CAPath }, want: "private key"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := asking(k)
			cfg.MaxPollAttempts = 1
			tc.change(&cfg)
			_, _, err := start(t, cfg, Options{}).Attest(patient(t), process(uidOne, id("1")))
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), "token-of-the-agent") {
				t.Errorf("the error has the token: %v", err)
			}
		})
	}
}

// TestAuto: the watch where it is allowed, else the kubelet.
func TestAuto(t *testing.T) {
	t.Parallel()
	auto := func(api *k8stest.API, k *k8stest.Kubelet) Config {
		cfg := watching(api)
		kubelet := asking(k)
		cfg.PodSource, cfg.PollRetryInterval = sourceAuto, kubelet.PollRetryInterval
		cfg.KubeletReadOnlyPort = kubelet.KubeletReadOnlyPort
		return cfg
	}
	t.Run("watch", func(t *testing.T) {
		t.Parallel()
		api, k := k8stest.NewAPI(t), k8stest.NewKubelet(t, false)
		api.SetPod(onePod())
		a := start(t, auto(api, k), Options{})
		attestNow(t, a, uidOne, id("1"))
		if n := k.Requests(); n != 0 {
			t.Errorf("the kubelet was asked %d times", n)
		}
	})
	t.Run("denied", func(t *testing.T) {
		t.Parallel()
		api, k := k8stest.NewAPI(t), k8stest.NewKubelet(t, false)
		api.Deny("pods", http.StatusForbidden)
		k.SetPods(onePod())
		var log logs
		a := start(t, auto(api, k), Options{Log: log.logger()})
		if got, _ := attestNow(t, a, uidOne, id("1")); !got.Equal(oneSelectors()) {
			t.Error(cmp.Diff(oneSelectors(), got))
		}
		if !strings.Contains(log.String(), "the kubelet is asked instead") {
			t.Errorf("log:\n%s", log.String())
		}
		if n := api.Count("list pods"); n > 2 {
			t.Errorf("the API server was asked %d times", n)
		}
	})
	t.Run("away from the beginning", func(t *testing.T) {
		t.Parallel()
		api, k := k8stest.NewAPI(t), k8stest.NewKubelet(t, false)
		api.SetDown(true)
		api.SetPod(twoPod())
		k.SetPods(onePod())
		a := start(t, auto(api, k), Options{})
		_, one := attestNow(t, a, uidOne, id("1"))
		api.SetDown(false)
		awaitClosed(t, one) // the API server does not have it
		attestNow(t, a, uidTwo, id("2"))
	})
	t.Run("away later", func(t *testing.T) {
		t.Parallel()
		api, k := k8stest.NewAPI(t), k8stest.NewKubelet(t, false)
		api.SetPod(onePod())
		k.SetPods(onePod(), twoPod())
		a := start(t, auto(api, k), Options{})
		attestNow(t, a, uidOne, id("1"))
		api.SetDown(true)
		a.await(t, func(s contactState) bool { return !s.live })
		attestNow(t, a, uidOne, id("1"))
		if n := k.Requests(); n != 0 {
			t.Errorf("the kubelet was asked %d times for what is known", n)
		}
		attestNow(t, a, uidTwo, id("2"))
	})
	t.Run("no node name", func(t *testing.T) {
		t.Parallel()
		api, k := k8stest.NewAPI(t), k8stest.NewKubelet(t, false)
		k.SetPods(onePod())
		cfg := auto(api, k)
		cfg.NodeName, cfg.NodeNameEnv = "", "NO_SUCH_VARIABLE"
		a := start(t, cfg, Options{})
		attestNow(t, a, uidOne, id("1"))
		if a.watch != nil {
			t.Error("there is a watch of a node without a name")
		}
	})
}

// TestKubeletFails: what is known is used, and the reason is told for the rest.
func TestKubeletFails(t *testing.T) {
	t.Parallel()
	k := k8stest.NewKubelet(t, false)
	k.SetPods(onePod())
	a := start(t, asking(k), Options{})
	attestNow(t, a, uidOne, id("1"))
	k.Deny(http.StatusForbidden)
	time.Sleep(a.kubelet.every)
	attestNow(t, a, uidOne, id("1"))
	_, _, err := a.Attest(soon(t), process(uidTwo, id("2")))
	if err == nil || !strings.Contains(err.Error(), "403 Forbidden: Forbidden (user=") {
		t.Errorf("error %v", err)
	}
}
