// Package storetest is the specification of package store in executable form.
// An engine that passes [Run] may be put under everything above it; an engine
// that needs another answer from one of these tests needs another contract.
//
// It holds no fakes and knows no engine. What only one engine can show (its
// file, its cluster) is tested beside that engine; crashes are in between: the
// engine's test makes the images, [CrashLoad] and [CheckCrash] say what must
// be in them.
//
// Read [Engine] first.
//
// The invariant: nothing here depends on how an engine numbers revisions,
// beyond that they grow, or on how often it runs the function of an Update.
package storetest
