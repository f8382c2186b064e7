package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// startEtcd starts a member that is a cluster of its own.
func (c *cluster) startEtcd(ctx context.Context) error {
	bin, err := etcdBinary(ctx, c.b.scratch)
	if err != nil {
		return err
	}
	ports := [2]int{}
	for i := range ports {
		if ports[i], err = freePort(ctx); err != nil {
			return err
		}
	}
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	c.etcd, err = startIn(c.dir, bin, "etcd.log", "--name", "bench", "--data-dir", filepath.Join(c.dir, "etcd"),
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "bench="+peer,
		"--quota-backend-bytes", "8589934592", "--log-level", "warn")
	c.store = fmt.Sprintf(`DataStore "etcd" { plugin_data { endpoints = [%q] } }`, client)
	return err
}

// etcdBinary is the program that ETCD_BIN names, or the one of the version that
// the module's tests use, built here.
func etcdBinary(ctx context.Context, dir string) (string, error) {
	if bin := os.Getenv("ETCD_BIN"); bin != "" {
		return bin, nil
	}
	bin := filepath.Join(dir, "etcd")
	if _, err := os.Stat(bin); err == nil {
		return bin, nil
	}
	if text, err := exec.CommandContext(ctx, "go", "build", "-o", bin, "go.etcd.io/etcd/server/v3").CombinedOutput(); err != nil { //nolint:gosec // a path of ours
		return "", fmt.Errorf("%w: no etcd: name the program in ETCD_BIN; building it: %w: %s", errSkipped, err, text)
	}
	return bin, nil
}
