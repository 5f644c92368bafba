// Package appfile reads volant.toml, and fly.toml, into the words of the platform.
//
// # Invariants
//
//   - No key is ignored in silence: an unknown one is an error with its place and the nearest known
//     key, and a key of Fly's which is not acted on yet is an error that names it, unless the caller
//     allows those and shows them.
//   - All problems of a file are told at once, each with file:line:column.
//
// # Sources
//
// Fly's configuration reference for the keys; [scale] is our own.
//
// # Not here
//
// Whether the app, the image or the region exists: that is the API's to say.
package appfile
