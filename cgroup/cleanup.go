package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/volant-edge/volant"
)

// maxDepth is how deep below a mount the node's directories are looked for.
const maxDepth = 5

// Cleanup removes all groups of a node, wherever it made them. Processes in them must have ended. It
// returns what it removed.
func Cleanup(ctx context.Context, node volant.NodeID) (removed []string, err error) {
	if !nodeID.MatchString(string(node)) {
		return nil, volant.Invalidf("node ID %q: it has 8 hex digits", string(node))
	}
	dirs, err := find(ctx, disk{}, func(name string) bool { return name == nodeDir(node) })
	errs := []error{err}
	for _, dir := range dirs {
		names, err := disk{}.Subdirs(dir)
		errs = append(errs, err)
		for _, n := range names {
			errs = append(errs, rmdir(ctx, disk{}, path.Join(dir, n)))
		}
		if err := rmdir(ctx, disk{}, dir); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, "cgroup "+dir)
	}
	return removed, errors.Join(errs...)
}

// Nodes lists the nodes which have left groups on this server.
func Nodes(ctx context.Context) ([]volant.NodeID, error) {
	var out []volant.NodeID
	_, err := find(ctx, disk{}, func(name string) bool {
		node, ok := strings.CutPrefix(name, nodeDir(""))
		if ok = ok && nodeID.MatchString(node); ok {
			out = append(out, volant.NodeID(node))
		}
		return ok
	})
	slices.Sort(out)
	return slices.Compact(out), err
}

// find lists directories in the mounted cgroup file systems by name.
func find(ctx context.Context, k kernel, match func(name string) bool) (found []string, err error) {
	b, err := k.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	var errs []error
	for _, m := range parseMounts(string(b)) {
		err := filepath.WalkDir(m.point, func(p string, d fs.DirEntry, err error) error {
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case errors.Is(err, fs.ErrNotExist):
				return nil // went while we looked
			case err != nil:
				return err
			case !d.IsDir():
				return nil
			case match(d.Name()):
				found = append(found, p)
				return fs.SkipDir
			case strings.Count(strings.TrimPrefix(p, m.point), "/") >= maxDepth:
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("cgroups: %w", err))
		}
	}
	return found, errors.Join(errs...)
}
