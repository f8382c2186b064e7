# `make` builds, lints and tests; `make check` is all that CI does.
# Nothing is installed by hand: tools come from tools/go.mod.

generate: ## regenerate proto/*.pb.go
	cd tools && go run ./protogen .. ..

.PHONY: generate
