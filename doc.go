// Package volant holds the words of the platform: what an app, a machine, a service, a release, a
// node and a region are, and the errors a caller can act on. It imports the standard library only,
// and every other package may import it.
//
// # Glossary
//
//   - app: what a user deploys. It owns machines, services and addresses. Its ID is never reused; its
//     name is an attribute.
//   - machine: one microVM and the wish for it. Its ID survives updates and never runs on two hosts.
//   - release: an app's config with the image pinned by digest; the template of created machines.
//   - node: one server running Volant. Roles: edge (accepts clients), host (runs machines), control
//     (keeps the intent and serves the API).
//   - region: a short code for a place, such as ams.
//   - service: protocol, internal port, external ports and concurrency of an app.
//   - slot: one unit of a hard limit, held from before the first byte reaches a machine until the
//     machine's side of the connection has closed.
//   - soft limit, hard limit: at or above the soft limit a machine gets connections only if all others
//     are there too; at the hard limit never.
//   - wish, have: what the intent says a machine should be, and what its host says it is.
//   - cordon: the operator's flag which keeps a machine out of routing. drain: the same by scaling or
//     a deploy, until the machine's last connection has ended.
//   - intent, live: durable records in the store, and facts of this minute with one writer each.
//   - tombstone: the record that says something was deleted. Only a tombstone deletes; absence never.
package volant
