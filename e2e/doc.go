// Package e2e holds the tests that run the whole product as its users do: a real server process, real microVMs,
// real software out of Debian packages, stock clients.
//
// They need QEMU, root and what `make test` builds first; see volanttest/need.
package e2e
