// Package debimage builds OCI images of real servers out of Debian packages, for the demo, tests and
// benchmarks: no registry, no container tool, no root.
//
//	apt's lists ─► resolve ─► fetch ─► unpack ─► prune ─► layers ─► archive
//
// apt resolves what a server depends on, as if nothing were installed, and downloads it into a
// cache. After that neither apt nor a network is needed. Packages are unpacked as they are: their
// scripts are not run, so users and directories which those would make are in the images' definitions.
//
// # Invariants
//
//   - Equal packages give equal archives.
//   - Each shared library that a binary in an image needs is in the image; what only libraries of
//     left-out packages needed is not.
//   - Manual pages, translations and the like are left out; copyright files stay.
//
// # Not here
//
// Writing the archive: package ociarchive. What the images are for: volanttest and bench.
package debimage
