// Package join lets servers into a cluster: the token an operator carries from one to the other, and the one exchange
// in which a new server gives its keys and is given the cluster's.
//
//	volant server --join ADDR ══ TLS on TCP 4281, pinned by the token ══► Server ─► Admitter: is it let in?
//
// # Invariants
//
//   - Who joins trusts nothing but the token: it holds the fingerprint of the key with which every control node proves
//     itself. The token's secret is sent only after that proof.
//   - The cluster keeps a hash of a token's secret, and never the secret.
//   - Requests and answers are bounded, requests are limited in rate by source and in all, and nothing that was read is
//     trusted before it was checked.
//   - The exchange can be repeated: the same node with the same key and token gets the same answer.
//
// # Not here
//
// Who may join, and the records of nodes and tokens: package node. The mesh itself: package mesh.
package join
