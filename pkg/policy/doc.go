// Package policy says who may call what: one table from each method of the
// server's API to the roles that may call it.
//
// It is data and a look-up. It does not find out who the caller is (the
// server's interceptors do, for each call anew), nor whether an agent may have
// an entry (package entitle).
//
// Read [Caller], then [Policy.Decide] and the table in table.go. The invariant:
// what is not in the table is denied.
package policy
