// Package trustdomainapi serves SPIRE's trustdomain.v1: with which other trust
// domains this one federates, and where their bundles come from.
//
// It fetches no bundle: that is the work of federation, which this server does
// not do yet, and RefreshBundle says so. Until then the bundle of another trust
// domain is what an operator sets, here or by bundle.v1.
//
// Read [Service] first. The invariant: a bundle that comes with a relationship is
// stored in the same commit as the relationship.
package trustdomainapi
