# `make` builds, lints and tests; `make check` is all that CI does.
# Go, git, make and gcc are enough: the tools come from tools/go.mod.

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
FUZZTIME ?= 10000x
SOAKTIME ?= 10m
TOOL     := go tool -modfile=tools/go.mod
BUILD    := CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X github.com/credence-id/credence/pkg/cli.version=$(VERSION)'

all: build lint test

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/credence-server and bin/credence-agent
	$(BUILD) -o bin/credence-server ./cmd/server
	$(BUILD) -o bin/credence-agent ./cmd/agent

image-roots: ## bin/image: what the images hold
	tools/image-roots '$(VERSION)'

images: image-roots ## bin/images/*.tar: the images, and the one of test/kube; needs docker
	tools/images

run: build ## a server and an agent in one process, to try things out
	@exec bin/credence-server dev

test: ## all tests, with the race detector
	go test -race -timeout 20m ./...

timing: ## what is promised in seconds, of programs without the race detector
	go test -count 1 -run TestTaintedAuthorityIsReplacedAtOnce ./test/integration

test-kube: ## the stories on the cluster that KUBECONFIG names, with the images of `make images`; see test/kube/doc.go
	go test -count 1 -v -timeout 40m ./test/kube

lint: ## golangci-lint: .golangci.yml says what
	$(TOOL) golangci-lint run ./...
	cd tools && go tool golangci-lint run ./...

fuzz: ## each fuzz target with FUZZTIME inputs (or for a time)
	tools/fuzz $(FUZZTIME)

bench: ## the load harness; docs/performance.md has the results
	go run ./test/bench all

bench-fleet: ## simulated fleets, in ten minutes: idle, polling, loaded; results in fleet.json
	go run ./test/bench -runs 1 -json fleet.json p9 p10 p10-poll p11 p21
	go run ./test/bench fleet -agents 1000 -entries 5000 -rotate 100 -duration 60s -json fleet-load.json

bench-once: ## each Go benchmark once, so that it lives
	go test -short -run '^$$' -bench . -benchtime 1x -timeout 10m ./...

soak: ## long tests, then each fuzz target for SOAKTIME
	SOAK=1 go test -race -count 1 -timeout 6h ./...
	tools/fuzz $(SOAKTIME)

generate: ## proto/*.pb.go, docs/configuration.md and deploy/kubernetes, from their sources
	cd tools && go run ./protogen .. ..
	cd tools && go run ./confdoc .. ../docs/configuration.md
	cd tools && go run ./chartgen ../deploy/helm/credence credence ../deploy/kubernetes

generate-check: ## generated code is current
	tools/generate-check

tidy-check: ## go.mod and go.sum are tidy
	go mod tidy -diff
	cd tools && go mod tidy -diff

cross: ## builds for the other platforms
	GOOS=linux GOARCH=amd64 CGO_ENABLED=0 go build ./...
	GOOS=linux GOARCH=arm64 CGO_ENABLED=0 go build ./...
	GOOS=darwin GOARCH=arm64 CGO_ENABLED=0 go build ./cmd/...

vuln: ## known vulnerabilities, where their database can be reached
	tools/vuln

check: build lint test timing generate-check tidy-check cross vuln bench-once fuzz ## everything CI does
	@echo 'make check: all passed'

.PHONY: all help build image-roots images run test timing test-kube lint fuzz bench bench-fleet bench-once soak generate generate-check tidy-check cross vuln check
