package cgroup

import (
	"path"
	"slices"
	"strings"
)

// mount is a line of /proc/self/mountinfo as far as cgroups need it.
type mount struct {
	root, point, kind string
	options           []string // of the super block
}

// parseMounts reads mountinfo; lines of another form are skipped.
func parseMounts(text string) []mount {
	var out []mount
	for line := range strings.Lines(text) {
		before, after, ok := strings.Cut(line, " - ")
		f, s := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(s) < 3 {
			continue
		}
		if s[0] == "cgroup" || s[0] == "cgroup2" {
			out = append(out, mount{root: f[3], point: f[4], kind: s[0], options: strings.Split(s[2], ",")})
		}
	}
	return out
}

// detect says which cgroups are used, and below which directory of each controller groups are made.
// The CPU controller decides: a hybrid server has it in v1. It is pure.
func detect(mountinfo, self string) (Mode, map[string]string) {
	mounts := parseMounts(mountinfo)
	v1 := map[string]string{}
	for _, c := range wanted() {
		i := slices.IndexFunc(mounts, func(m mount) bool { return m.kind == "cgroup" && slices.Contains(m.options, c) })
		if i >= 0 {
			v1[c] = path.Join(mounts[i].point, below(mounts[i].root, ownGroup(self, c)))
		}
	}
	if len(v1) > 0 {
		return V1, v1
	}
	for _, m := range mounts {
		if m.kind == "cgroup2" {
			return V2, map[string]string{"": m.point}
		}
	}
	return None, nil
}

// below is the path of a group inside a mount which shows the tree from root on.
func below(root, group string) string {
	rest, ok := strings.CutPrefix(group, root)
	if !ok || strings.Contains(group, "..") {
		return "/" // outside of what we see
	}
	return rest
}

// ownGroup finds our group in a hierarchy of v1, from the lines "ID:controllers:path". What runs in a
// group of ours (such as a proxy that starts a server) counts as running beside it.
func ownGroup(self, controller string) string {
	for line := range strings.Lines(self) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && slices.Contains(strings.Split(f[1], ","), controller) {
			parts := strings.Split(f[2], "/")
			for i, p := range parts {
				if node, ok := strings.CutPrefix(p, nodeDir("")); ok && nodeID.MatchString(node) {
					return path.Clean("/" + strings.Join(parts[:i], "/"))
				}
			}
			return f[2]
		}
	}
	return "/"
}
