//go:build !linux

package csi

import "errors"

// errLinux is what New returns here.
var errLinux = errors.New("the CSI node service mounts, which it can on Linux only; remove the section agent.csi")

// mounts cannot be made on this system.
type mounts struct{}

func newMounts(_, _, _ string) (*mounts, error) { return nil, errLinux }

func (*mounts) problems() []error                 { return []error{errLinux} }
func (*mounts) ready() error                      { return errLinux }
func (*mounts) publish(target) (outcome, error)   { return failed, errLinux }
func (*mounts) unpublish(target) (outcome, error) { return failed, errLinux }
func (*mounts) found() ([]target, error)          { return nil, errLinux }
func (*mounts) adopt(target) (outcome, error)     { return failed, errLinux }
