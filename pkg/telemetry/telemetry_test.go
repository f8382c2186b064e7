package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

func TestParseLevel(t *testing.T) {
	t.Parallel()
	tests := map[string]slog.Level{
		"": slog.LevelInfo, "DEBUG": slog.LevelDebug, "info": slog.LevelInfo, "Warn": slog.LevelWarn,
		"warning": slog.LevelWarn, "ERROR": slog.LevelError, "trace": LevelTrace, "fatal": LevelFatal, "panic": LevelPanic,
	}
	for name, want := range tests {
		if got, err := ParseLevel(name); err != nil || got != want {
			t.Errorf("ParseLevel(%q) = %v, %v; want %v", name, got, err, want)
		}
	}
	if _, err := ParseLevel("loud"); err == nil || !strings.Contains(err.Error(), "use DEBUG, INFO, WARN or ERROR") {
		t.Errorf("ParseLevel of an unknown name: %v", err)
	}
}

func TestLogFormatsAndLevel(t *testing.T) {
	t.Parallel()
	var buf bytes.Buffer
	log, err := NewLog(LogConfig{Level: "warn", Format: "JSON", Output: &buf})
	if err != nil {
		t.Fatal(err)
	}
	derived := log.Logger().With(SPIFFEID, "spiffe://td/a")
	derived.Info("too quiet")
	log.SetLevel(slog.LevelInfo)
	derived.Info("heard")
	log.SetLevel(LevelPanic)
	derived.Error("too quiet again")

	var got map[string]any
	if err := json.Unmarshal(buf.Bytes(), &got); err != nil {
		t.Fatalf("want one JSON line: %v: %s", err, buf.String())
	}
	delete(got, "time")
	if diff := cmp.Diff(map[string]any{"level": "INFO", "msg": "heard", "spiffe_id": "spiffe://td/a"}, got); diff != "" {
		t.Errorf("line (-want +got):\n%s", diff)
	}
	if log.LaunchLevel() != slog.LevelWarn || log.Level() != LevelPanic {
		t.Errorf("launch level %v, level %v", log.LaunchLevel(), log.Level())
	}
}

func TestNewLogNamesTheKey(t *testing.T) {
	t.Parallel()
	tests := []struct {
		want   string
		config LogConfig
	}{
		{"log_level: ", LogConfig{Level: "x"}},
		{"log_format: ", LogConfig{Format: "xml"}},
		{"log_file: ", LogConfig{File: filepath.Join(t.TempDir(), "none", "log")}},
	}
	for _, test := range tests {
		if _, err := NewLog(test.config); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%+v: got %v, want %s…", test.config, err, test.want)
		}
	}
}

// TestReopenOnSignal rotates the log file while others write to it: no line is
// lost and each stands in one piece.
func TestReopenOnSignal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log, err := NewLog(LogConfig{File: path})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := log.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	const writers, lines = 4, 500
	var writing sync.WaitGroup
	for range writers {
		writing.Go(func() {
			for range lines {
				log.Logger().Info("line")
			}
		})
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	// The signal may come before Run has asked for it and would then end the
	// process: ask for it here as well.
	self := make(chan os.Signal, 1)
	signal.Notify(self, syscall.SIGUSR2)
	defer signal.Stop(self)
	for {
		if _, err := os.Stat(path); err == nil {
			break
		}
		if err := syscall.Kill(os.Getpid(), syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		<-self
		time.Sleep(time.Millisecond)
	}
	writing.Wait()
	cancel()
	wg.Wait()
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	var all []byte
	for _, name := range []string{path + ".1", path} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data...)
	}
	if got := bytes.Count(all, []byte("level=INFO msg=line\n")); got != writers*lines {
		t.Errorf("%d whole lines in both files, want %d", got, writers*lines)
	}
	log.Logger().Info("after Close") // must not panic
}

func TestReopenKeepsTheOldFileOnError(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "logs")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "log")
	log, err := NewLog(LogConfig{File: path})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	moved := dir + ".moved"
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	if err := log.Reopen(); err == nil {
		t.Error("Reopen in a folder that is gone succeeded")
	}
	log.Logger().Info("still here")
	data, err := os.ReadFile(filepath.Join(moved, "log"))
	if err != nil || !bytes.Contains(data, []byte("still here")) {
		t.Errorf("old file has %q, %v", data, err)
	}
}

// serve runs l on a free port and returns its base URL.
func serve(t *testing.T, l *Listener) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return "http://" + ln.Addr().String()
}

func request(t *testing.T, method, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestHealth(t *testing.T) {
	t.Parallel()
	var ready atomic.Pointer[error]
	l, err := NewHealth(HealthConfig{LivePath: "/live", ReadyPath: "/up"},
		func(context.Context) error { return nil },
		func(context.Context) error {
			if err := ready.Load(); err != nil {
				return *err
			}
			return nil
		}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	base := serve(t, l)
	check := func(method, path string, code int, body string) {
		t.Helper()
		gotCode, gotBody := request(t, method, base+path)
		if gotCode != code || gotBody != body {
			t.Errorf("%s %s = %d %q, want %d %q", method, path, gotCode, gotBody, code, body)
		}
	}
	check("GET", "/live", 200, "{\"status\":\"ok\"}\n")
	check("HEAD", "/live", 200, "")
	check("GET", "/up", 200, "{\"status\":\"ok\"}\n")
	problem := errors.New("no authority is active")
	ready.Store(&problem)
	check("GET", "/up", 500, "{\"status\":\"failing\",\"reason\":\"no authority is active\"}\n")
	check("GET", "/live", 200, "{\"status\":\"ok\"}\n")
	check("GET", "/ready", 404, "404 page not found\n")
	check("POST", "/live", 405, "method not allowed\n")
}

func TestPrometheus(t *testing.T) {
	t.Parallel()
	reg := NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "credence_test_total", Help: "Test."})
	reg.MustRegister(counter)
	counter.Add(3)
	l, err := NewPrometheus(PrometheusConfig{Port: 9988}, reg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	base := serve(t, l)
	for _, path := range []string{"/metrics", "/"} {
		code, body := request(t, "GET", base+path)
		for _, want := range []string{"credence_test_total 3\n", "go_goroutines ", "process_open_fds "} {
			if code != 200 || !strings.Contains(body, want) {
				t.Errorf("GET %s = %d without %q", path, code, want)
			}
		}
	}
}

func TestListenOnABusyPortNamesTheKey(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).Port
	_, health := HealthConfig{ListenerEnabled: true, BindAddress: "127.0.0.1", BindPort: strconv.Itoa(port)}.Listen(t.Context())
	_, metrics := Config{Prometheus: &PrometheusConfig{Host: "127.0.0.1", Port: port}}.ListenMetrics(t.Context())
	_, foreign := HealthConfig{ListenerEnabled: true, BindAddress: "192.0.2.1", BindPort: strconv.Itoa(port)}.Listen(t.Context())
	for prefix, err := range map[string]error{
		"health_checks.bind_port: port ":     health,
		"telemetry.Prometheus.port: port ":   metrics,
		"health_checks.bind_address: listen": foreign,
	} {
		if err == nil || !strings.HasPrefix(err.Error(), prefix) {
			t.Errorf("got %v, want an error that begins with %q", err, prefix)
		}
	}
	if !errors.Is(health, syscall.EADDRINUSE) {
		t.Errorf("got %v, want EADDRINUSE", health)
	}
	if off, err := (HealthConfig{}).Listen(t.Context()); off != nil || err != nil {
		t.Errorf("a listener that is not enabled: %v, %v", off, err)
	}
	if off, err := (Config{}).ListenMetrics(t.Context()); off != nil || err != nil {
		t.Errorf("metrics without a section: %v, %v", off, err)
	}
}

func TestValidateNamesTheKey(t *testing.T) {
	t.Parallel()
	type edit = func(*HealthConfig)
	health := func(change edit) error {
		c := HealthConfig{ListenerEnabled: true, BindAddress: "localhost", BindPort: "80", LivePath: "/live", ReadyPath: "/ready"}
		change(&c)
		return firstProblem(c.Validate)
	}
	prometheus := func(port int) error { return firstProblem(Config{Prometheus: &PrometheusConfig{Port: port}}.Validate) }
	profiling := func(p Profiling) error {
		var problems []error
		p.Validate(func(key string, err error) { problems = append(problems, fmt.Errorf("%s: %w", key, err)) })
		return errors.Join(problems...)
	}
	tests := []struct {
		want string
		err  error
	}{
		{"", firstProblem(Config{}.Validate)},
		{"", prometheus(65535)},
		{"telemetry.Prometheus.port: ", prometheus(0)},
		{"telemetry.Prometheus.port: ", prometheus(65536)},
		{"", firstProblem(HealthConfig{}.Validate)},
		{"", health(func(c *HealthConfig) { c.BindPort = "65535" })},
		{"", health(func(c *HealthConfig) { c.BindPort, c.ListenerEnabled = "web", false })},
		{"health_checks.bind_port: ", health(func(c *HealthConfig) { c.BindPort = "65536" })},
		{"health_checks.bind_port: ", health(func(c *HealthConfig) { c.BindPort = "web" })},
		{"health_checks.live_path: ", health(func(c *HealthConfig) { c.LivePath = "live" })},
		{"health_checks.ready_path: ", health(func(c *HealthConfig) { c.ReadyPath = "ready" })},
		{"health_checks.ready_path: ", health(func(c *HealthConfig) { c.ReadyPath = "/live" })},
		{"", profiling(Profiling{ProfilingPort: -1, ProfilingNames: []string{"nonsense"}})},
		{"", profiling(Profiling{ProfilingEnabled: true, ProfilingPort: 6060, ProfilingNames: []string{"heap", "cpu", "trace"}})},
		{"profiling_port: ", profiling(Profiling{ProfilingEnabled: true})},
		{"profiling_names: ", profiling(Profiling{ProfilingEnabled: true, ProfilingPort: 1, ProfilingNames: []string{"nonsense"}})},
	}
	for i, test := range tests {
		if test.want == "" {
			if test.err != nil {
				t.Errorf("case %d: %v", i, test.err)
			}
			continue
		}
		if test.err == nil || !strings.HasPrefix(test.err.Error(), test.want) {
			t.Errorf("case %d: got %v, want %s…", i, test.err, test.want)
		}
	}
}
