// Package etcd is the store's engine: an etcd member inside this process, or members elsewhere.
//
//	Store ──► v3client (function calls) ──► etcdserver ──► WAL and bbolt under Config.Dir
//	             other members ◄── peer listener ──┤ (raft over http, in the mesh)
//	Remote ──► clientv3 (gRPC) ──► client listener ┘
//
// A Store without Config.Listen stands alone. With it, it is one of 1, 3 or 5 members, which Admin adds and
// removes; a majority of them must be up. Nodes without a member use a Remote.
//
// # Invariants
//
//   - Only the mesh reaches a member, which authenticates every node; without a mesh it has no listener,
//     neither TCP nor unix.
//   - The member cannot end the process: what it would do by os.Exit or by a panic of its logger ends the
//     goroutine, fails every call with volant.ErrUnavailable, and closes the member.
//   - An acknowledged Commit is fsynced on a majority, and was in a directory that is still there: a
//     member whose directory was removed refuses writes.
//   - An empty or rolled-back store is never served to nodes which have seen more: one that is older than
//     Floor is refused, by Store and Remote.
//   - Every Commit holds only in the history that it was read in: the epoch key names it, with a random mark, and
//     is part of each transaction. A Remote takes no answer of another cluster.
//   - A new member is a learner first, and has a vote when it has caught up. A member that was removed says so
//     and never starts again; one whose directory is lost is replaced, and never comes back empty.
//   - A call ends within 10 s. Of a Remote, only what surely changed nothing is asked a second time.
//
// # Sources
//
// go.etcd.io/etcd/server/v3 v3.7.3: etcdserver.NewServer, etcdserver/raft.go and server.go for what ends a
// process and how members change; embed/etcd.go and serve.go for the listeners. Keys: volant/KEY for the intent,
// volant-epoch for the cluster epoch, volant-seeding while a restore is under way; all under RemoteConfig.Prefix
// in an etcd that is shared.
//
// # Not here
//
// Which nodes have a member, and the exchange by which a server joins: packages node and join.
package etcd
