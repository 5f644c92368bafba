// Package etcd is the store's engine: one etcd member inside this process.
//
//	Store ──► v3client (function calls) ──► etcdserver ──► WAL and bbolt under Config.Dir
//
// # Invariants
//
//   - Nobody else reaches the member: it has no listener, neither TCP nor unix.
//   - The member cannot end the process: what it would do by os.Exit or by a panic of its logger ends the
//     goroutine, fails every call with volant.ErrUnavailable, and closes the member.
//   - An acknowledged Commit is fsynced, and was in the directory that is still there: a member whose
//     directory was removed refuses writes.
//   - An empty or rolled-back directory is never served to nodes which have seen more: Open refuses one that
//     is older than Config.Floor.
//   - Every Commit holds only in the cluster epoch that this Store was opened in.
//
// # Sources
//
// go.etcd.io/etcd/server/v3 v3.7.3: etcdserver.NewServer, etcdserver/raft.go and server.go for what ends a
// process. Keys: volant/KEY for the intent, volant-epoch for the cluster epoch, volant-seeding while a
// restore is under way.
//
// # Not here
//
// More than one member, and an external cluster.
package etcd
