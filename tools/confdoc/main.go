// Command confdoc writes docs/configuration.md out of the Go source: every key
// that the two programs know, with its type, default, status and meaning.
//
// It reads no running program and keeps no table of its own. Keys are the
// fields tagged hcl of server.Config and agent.Config, of what these are made
// of, and of the structs that a directive names as a plugin's data:
//
//	//credence:plugin_data server KeyManager disk
//
// The tags default, unset, refused, accepted and ours, which the programs go by
// (see package config), and the doc comments are the rest. Plugins that are
// refused are the variables later of both packages.
//
// Usage, from tools/: go run ./confdoc ROOT OUT. ROOT is the repository; OUT is
// the file to write.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: confdoc ROOT OUT")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "confdoc:", err)
		os.Exit(1)
	}
}

func run(root, out string) error {
	t, err := parse(root)
	if err != nil {
		return err
	}
	text, err := t.document()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(out, []byte(text), 0o644)
}
