// Command chartgen writes a Helm chart with its default values as plain
// manifests, one file a template:
//
//	chartgen CHART NAMESPACE OUTPUT-FOLDER
//
// deploy/kubernetes is made by it, so that the chart and the manifests are one
// thing. Templates that come out empty make no file; kustomization.yaml, which
// lists the files, is written by hand.
package main

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
)

const head = "# Made from deploy/helm/credence by `make generate`: edit that, or patch this with\n# a kustomization of your own.\n"

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: chartgen CHART NAMESPACE OUTPUT-FOLDER")
		os.Exit(2)
	}
	if err := generate(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "chartgen:", err)
		os.Exit(1)
	}
}

func generate(from, namespace, to string) error {
	c, err := loader.Load(from)
	if err != nil {
		return err
	}
	release := chartutil.ReleaseOptions{Name: c.Name(), Namespace: namespace, IsInstall: true}
	values, err := chartutil.ToRenderValues(c, nil, release, chartutil.DefaultCapabilities)
	if err != nil {
		return err
	}
	rendered, err := engine.Render(c, values)
	if err != nil {
		return err
	}
	for name, text := range rendered {
		text = strings.TrimSpace(text)
		if path.Ext(name) != ".yaml" || text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(to, path.Base(name)), []byte(head+text+"\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}
