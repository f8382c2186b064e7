// Command protogen turns the .proto files of this repository into Go, with
// nothing but Go: it compiles them with protocompile and hands the result to
// the protoc-gen-go and protoc-gen-go-grpc that tools/go.mod pins.
//
// It is not a general protoc: paths are relative to the repository's root, and
// all output has paths=source_relative.
//
// Usage, from tools/: go run ./protogen ROOT OUT. ROOT is the repository; OUT
// is where proto/… is written, the same as ROOT to regenerate in place.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/linker"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

var plugins = []string{"protoc-gen-go", "protoc-gen-go-grpc"}

// apiModule has SPIRE's messages, which ours import, below its folder proto.
const apiModule = "github.com/spiffe/spire-api-sdk"

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: protogen ROOT OUT")
		os.Exit(2)
	}
	if err := run(context.Background(), os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root, out string) error {
	names, err := protoFiles(root)
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return errors.New("no .proto file under proto/")
	}
	request, err := compile(ctx, root, names)
	if err != nil {
		return err
	}
	for _, plugin := range plugins {
		if err := generate(ctx, plugin, request, out); err != nil {
			return fmt.Errorf("%s: %w", plugin, err)
		}
	}
	return nil
}

// protoFiles lists the .proto files under proto/, as paths relative to root.
func protoFiles(root string) ([]string, error) {
	var names []string
	err := filepath.WalkDir(filepath.Join(root, "proto"), func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".proto" {
			return err
		}
		rel, err := filepath.Rel(root, path)
		names = append(names, filepath.ToSlash(rel))
		return err
	})
	return names, err
}

// compile returns the request that protoc would send to each plugin.
func compile(ctx context.Context, root string, names []string) (*pluginpb.CodeGeneratorRequest, error) {
	api, err := moduleDir(ctx, root, apiModule)
	if err != nil {
		return nil, err
	}
	source := &protocompile.SourceResolver{ImportPaths: []string{root, filepath.Join(api, "proto")}}
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(source),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(ctx, names...)
	if err != nil {
		return nil, err
	}
	request := &pluginpb.CodeGeneratorRequest{
		FileToGenerate: names,
		Parameter:      proto.String("paths=source_relative"),
	}
	seen := make(map[string]bool)
	var add func(protoreflect.FileDescriptor) // dependencies first, as protoc does
	add = func(file protoreflect.FileDescriptor) {
		if seen[file.Path()] {
			return
		}
		seen[file.Path()] = true
		for i := range file.Imports().Len() {
			add(file.Imports().Get(i).FileDescriptor)
		}
		request.ProtoFile = append(request.ProtoFile, descriptor(file))
	}
	for _, file := range files {
		add(file)
	}
	return request, nil
}

// moduleDir is where the module cache has the version of module that the
// repository's go.mod asks for.
func moduleDir(ctx context.Context, root, module string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", module)
	cmd.Dir = root
	stdout, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("locating module %s: %w: %s", module, err, stdout)
	}
	var found struct{ Dir string }
	if err := json.Unmarshal(stdout, &found); err != nil {
		return "", fmt.Errorf("locating module %s: %w", module, err)
	}
	return found.Dir, nil
}

func descriptor(file protoreflect.FileDescriptor) *descriptorpb.FileDescriptorProto {
	if imported, ok := file.(protoreflect.FileImport); ok {
		file = imported.FileDescriptor
	}
	if compiled, ok := file.(linker.Result); ok {
		return compiled.FileDescriptorProto()
	}
	return protodesc.ToFileDescriptorProto(file) // one of protobuf's own, which come compiled
}

// generate runs one plugin and writes what it answers below out.
func generate(ctx context.Context, plugin string, request *pluginpb.CodeGeneratorRequest, out string) error {
	in, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", "tool", plugin)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(stdout.Bytes(), &response); err != nil {
		return err
	}
	if response.Error != nil {
		return errors.New(response.GetError())
	}
	for _, file := range response.GetFile() {
		path := filepath.Join(out, filepath.FromSlash(file.GetName()))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(file.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
