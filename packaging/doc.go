// Package packaging holds what the Debian package is made of, and tests it.
//
// `make deb` builds the package: the binary, the unit, a configuration with the defaults, and man pages and
// completions out of the command tree. `make deb-test` builds it and tests it installed below a directory.
package packaging
