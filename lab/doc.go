// Package lab builds a planet on one Linux machine: servers in several regions, routers, clients, and wires between the
// regions that take as long as the real ones. Real nodes run in it. It serves users, as `volant lab`, and all tests
// that need more than one server.
//
//	clients of dfw (a /24 and a /48)                       clients of ord
//	      │                                                      │
//	  router dfw ════════════ wire, 9.7 ms ════════════════ router ord ════ …
//	   │      │                                              │      │
//	 dfw-1  dfw-2      each box is a network namespace     ord-1  ord-2
//
// Apps' addresses are anycast: a router sends them to its own region's live servers, several by the hash of addresses
// and ports, else to the nearest region that has one.
//
// # Invariants
//
//   - Everything made bears the lab's name: namespaces are vlab-NAME-…, and what is in them goes with them; processes
//     are found by the namespace they are in, the wires' by its directory. So Down needs no record of what was done,
//     and works on a lab that was half built or whose processes were killed.
//   - The plan of a lab is pure: texts for ip and nft that follow from its Config and what was cut.
//   - What is cut or dead is silent: packets vanish, and nobody is told.
//   - A node that was killed starts again in a namespace made anew, as after a power cut.
//
// # Not here
//
// How frames are delayed and lost: package wire.
package lab
