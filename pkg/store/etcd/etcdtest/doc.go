// Package etcdtest runs real etcd for tests: one member inside the test's
// process for all its tests ([Start]), or clusters of processes that can be
// killed, paused and cut off ([NewCluster]).
//
// The processes of a cluster are the test's own binary, executed again:
// TestMain has to call [Main]. A [Link] is one client's way to a cluster, a TCP
// proxy for each member, which can be cut while other clients go on.
//
// It knows no engine: what it gives are endpoints. It links the server of etcd,
// so only tests import it, and only those that need it.
//
// Read [Start] first. The invariant: what a test starts has ended before the
// test's process ends.
package etcdtest
