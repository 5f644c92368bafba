package cgroup

import (
	"log/slog"

	"github.com/volant-edge/volant"
)

// For tests.
var (
	Detect    = detect
	ParseStat = parseStat
)

// Kernel is the cgroup file system.
type Kernel = kernel

// OpenOn is New on a kernel that a test plays.
func OpenOn(k Kernel, node volant.NodeID, mountinfo, self string, log *slog.Logger) (*Groups, error) {
	return open(k, node, mountinfo, self, log)
}

// Writes are the lines "file=value" that limits cause for a group in the given mode.
func Writes(mode Mode, l Limits) []string {
	g := &Groups{mode: mode, dir: "n", bases: map[string]string{}, missing: map[string]string{}}
	g.bases[""] = ""
	for _, c := range wanted() {
		g.bases[c] = c
	}
	var out []string
	for _, w := range g.plan("m", l) {
		out = append(out, w.file+"="+w.value)
	}
	return out
}
