// Package cache holds what an agent may hand to workloads: the entries and
// bundles the server has sent, and the X509-SVIDs and JWT-SVIDs minted for them.
// It matches selectors to entries, keeps X509-SVIDs warm and fresh, and tells
// every subscriber when what its workload may have has changed.
//
// It does not talk to the server (package feed brings the entries, a [Minter]
// signs), does not find out who a workload is (workload attestors do) and does
// not know the Workload API's messages.
//
// Read [Cache] first, then [Subscription] and [Grant]. In the code: feed.go is
// what the server changes, view.go who is told, warm.go and mint.go how SVIDs
// are made, schedule.go when.
//
// The invariant: a Grant holds only identities whose entries the workload's
// selectors contain in full, and whose SVIDs have not expired at the time it is
// handed out. Losing the server takes nothing away before its time; Wipe takes
// everything, at once.
package cache
