package server

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/credence-id/credence/pkg/config"
	"github.com/credence-id/credence/pkg/publish"
	"github.com/credence-id/credence/pkg/registry"
)

// choosePublisher reads the section of a plugin that writes the bundle
// somewhere.
type choosePublisher func(config.Plugin, *choice) ([]publish.Target, error)

// publisherConfig is plugin_data of one.
type publisherConfig interface {
	Validate() error
	CheckFiles() error
	Targets() []publish.Target
}

// publisherOf reads plugin_data of a type.
func publisherOf[T publisherConfig](p config.Plugin, c *choice) ([]publish.Target, error) {
	var cfg T
	if err := p.Decode(&cfg); err != nil {
		return nil, err
	}
	if err := cfg.Validate(); err != nil {
		return nil, p.Wrap(err)
	}
	c.check(func() error { return p.Wrap(cfg.CheckFiles()) })
	return cfg.Targets(), nil
}

// chooseTargets reads the sections of all that write the bundle somewhere.
func chooseTargets(ps config.Plugins, c *choice) ([]publish.Target, error) {
	var out []publish.Target
	var problems []error
	for _, kind := range slices.Sorted(maps.Keys(publishers)) {
		for _, p := range ps.OfType(kind) {
			read, ok := publishers[kind][p.Name]
			if !ok {
				continue // Plugins.Check said so.
			}
			targets, err := read(p, c)
			problems = append(problems, err)
			out = append(out, targets...)
		}
	}
	return out, errors.Join(problems...)
}

// buildPublisher makes what writes the bundle to others. Each write is of the
// bundle as the store has it: a server that is cut off writes nothing, so that
// what another has written stays.
func (k *control) buildPublisher(targets []publish.Target) (err error) {
	k.publisher, err = publish.New(publish.Config{
		Targets: targets,
		Bundle: func(ctx context.Context) (*registry.Bundle, error) {
			if err := k.fresh.wait(ctx); err != nil {
				return nil, err
			}
			return k.roots.bundle(), nil
		},
		Logger: k.log, Registerer: k.metrics,
	})
	if err == nil && len(targets) > 0 {
		k.health.Part("publishing", k.publisher.Check)
	}
	return err
}
