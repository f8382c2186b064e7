package ca

import (
	"context"
	"errors"
	"slices"

	"github.com/credence-id/credence/pkg/registry"
	recordv1 "github.com/credence-id/credence/proto/record/v1"
)

// gone takes a step of an operator with an authority of another server, when that
// server does not run and so cannot take it itself. Whatever state the authority
// was in, it is old afterwards: should its server come back, it finds that in its
// journal and makes another. edit is as for withdrawn.
func (l Line) gone(ctx context.Context, id string, edit func(*registry.Bundle, *member) error) (View, error) {
	r := l.r
	has := func(record *recordv1.JournaledAuthority) bool { return record.GetAuthorityId() == id }
	owner, err := r.cfg.Registry.FindJournal(ctx, func(j *recordv1.Journal) bool {
		return slices.ContainsFunc(*r.journal(j), has)
	})
	if err != nil {
		return View{}, err
	}
	if owner == "" || owner == r.cfg.ServerID {
		return View{}, refuse(KnownAuthority, nil, "no authority of any server has the ID %q", id)
	}
	var m *member
	err = r.cfg.Registry.UpdateGoneAuthorities(ctx, owner, func(b *registry.Bundle, j *recordv1.Journal) error {
		list := *r.journal(j)
		at := slices.IndexFunc(list, has)
		if at < 0 {
			return refuse(KnownAuthority, nil, "no authority of any server has the ID %q", id)
		}
		found, err := restore(list[at])
		if err != nil {
			return err
		}
		m = found.with(old)
		if err := edit(b, m); err != nil {
			return err
		}
		list[at] = m.record()
		return nil
	})
	switch {
	case errors.Is(err, registry.ErrRunning):
		return View{}, refuse(OwnerAway, nil, "authority %s is of server %s, which is running: do this at that server", id, owner)
	case err != nil:
		return View{}, err
	}
	r.log.Warn("authority: an operator changed one of a server that does not run", keyAuthority, id, keyServer, owner)
	return m.view(), nil
}

// isRule says whether err is a refusal by the rule.
func isRule(err error, rule Rule) bool {
	e, ok := errors.AsType[*Refusal](err)
	return ok && e.Rule == rule
}
