// Package appfile reads an app's config file, volant.toml or fly.toml, into the release it asks for.
//
//	TOML, JSON or YAML ─► tree with places ─► sections ─► api.CreateRelease, lacking only its image's digest
//
// # Invariants
//
//   - No key is ignored in silence: an unknown one is an error with its place and the nearest known
//     key, and a key of Fly's which is not acted on is an error that names it, unless the caller
//     allows those and shows the warnings.
//   - All problems of a file are told at once, each with file:line:column.
//   - What asks for nothing (an empty list, false, 0) is no problem, even under a key that is not acted on.
//
// # Sources
//
// Fly's configuration reference for the keys; [scale] is our own.
//
// # Not here
//
// Whether the app, the image or the region exists: that is the API's to say.
package appfile
