package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
)

// Mode is the kind of cgroups a server has.
type Mode string

// The kinds.
const (
	V1   Mode = "v1"
	V2   Mode = "v2"
	None Mode = "none"
)

// wanted are the controllers that limits need.
func wanted() []string { return []string{"cpu", "cpuset", "memory", "pids"} }

// Limits bound a machine. A zero value leaves a limit as it is; NoLimit takes it away.
type Limits struct {
	Weight   int           // CPU share against other machines, 1 to 10000; 100 is usual
	Quota    time.Duration // CPU time per Period
	Burst    time.Duration // unused quota that may be saved up, at most Quota
	Period   time.Duration // 100ms if zero and Quota is not
	CPUs     []int         // logical CPUs it may run on
	MemoryMB int           // of the VMM with its guest
	Pids     int           // processes and threads
}

// NoLimit takes a quota, a memory or a pids limit away.
const NoLimit = -1

// Missing is a controller that cannot be used, and why.
type Missing struct{ Controller, Why string }

// Groups are the cgroups of one node.
type Groups struct {
	mode Mode
	dir  string // name of the node's directory
	fs   kernel
	log  *slog.Logger

	mu      sync.Mutex
	ready   bool
	bases   map[string]string // controller → directory that holds dir; v2 has one, under ""
	missing map[string]string
}

// New looks which cgroups there are and makes none. A nil log discards.
func New(node volant.NodeID, log *slog.Logger) (*Groups, error) {
	k := disk{}
	mounts, err := k.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	self, err := k.ReadFile("/proc/self/cgroup")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	return open(k, node, string(mounts), string(self), log)
}

var nodeID = regexp.MustCompile(`^[0-9a-f]{8}$`)

func open(k kernel, node volant.NodeID, mountinfo, self string, log *slog.Logger) (*Groups, error) {
	if !nodeID.MatchString(string(node)) {
		return nil, volant.Invalidf("node ID %q: it has 8 hex digits", string(node))
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	g := &Groups{dir: nodeDir(node), fs: k, log: log, missing: map[string]string{}}
	g.mode, g.bases = detect(mountinfo, self)
	switch g.mode {
	case V1:
		for _, c := range wanted() {
			if g.bases[c] == "" {
				g.missing[c] = "the kernel has no " + c + " controller, or it is not mounted"
			}
		}
	case V2:
		b, err := k.ReadFile(path.Join(g.bases[""], "cgroup.controllers"))
		if err != nil {
			return nil, fmt.Errorf("cgroups: %w", err)
		}
		for _, c := range wanted() {
			if !slices.Contains(strings.Fields(string(b)), c) {
				g.missing[c] = "the kernel offers no " + c + " controller in " + g.bases[""]
			}
		}
	case None:
		for _, c := range wanted() {
			g.missing[c] = "no cgroup file system is mounted"
		}
	}
	return g, nil
}

func nodeDir(node volant.NodeID) string { return "volant-" + string(node) }

// Mode says which kind of cgroups is used.
func (g *Groups) Mode() Mode { return g.mode }

// Missing lists the controllers that cannot be used. It is complete after the first group was made.
func (g *Groups) Missing() []Missing {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []Missing
	for _, c := range slices.Sorted(maps.Keys(g.missing)) {
		out = append(out, Missing{c, g.missing[c]})
	}
	return out
}

// groupName keeps names inside the node's directory.
var groupName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// Add moves a machine's process into its group, which is made if it is missing.
func (g *Groups) Add(ctx context.Context, id volant.MachineID, pid int) error {
	return g.Place(ctx, string(id), pid)
}

// Place is Add for a group that is no machine's, such as the proxy's.
func (g *Groups) Place(ctx context.Context, name string, pid int) error {
	dirs, err := g.make(ctx, name)
	if err != nil {
		return err
	}
	var errs []error
	done := 0
	for _, dir := range dirs {
		err := g.fs.WriteFile(path.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)))
		if errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("cgroup %s: process %d is gone: %w", name, pid, err)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("cgroup %s: add process %d: %w", name, pid, err))
			continue
		}
		done++
	}
	if done == 0 {
		return errors.Join(errs...)
	}
	if len(errs) > 0 {
		g.log.Warn("process is not in all cgroups", "group", name, "err", errors.Join(errs...))
	}
	return nil
}

// make makes the group and returns its directories; none where there are no cgroups.
func (g *Groups) make(ctx context.Context, name string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !groupName.MatchString(name) {
		return nil, volant.Invalidf("cgroup name %q: use lower-case letters, digits, '-' and '_'", name)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.prepareLocked(); err != nil {
		return nil, err
	}
	var dirs []string
	for _, c := range slices.Sorted(maps.Keys(g.bases)) {
		dir := path.Join(g.bases[c], g.dir, name)
		if err := g.mkdir(dir); err != nil {
			return nil, fmt.Errorf("cgroup %s: %w", name, err)
		}
		if c == "cpuset" {
			if err := g.inheritCPUs(dir); err != nil {
				return nil, fmt.Errorf("cgroup %s: %w", name, err)
			}
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// prepareLocked makes the node's directories. Where that fails for a controller of v1, or a controller
// of v2 cannot be switched on, it is missing from then on.
func (g *Groups) prepareLocked() error {
	if g.ready {
		return nil
	}
	if g.mode == V2 {
		if err := g.prepareV2(); err != nil {
			return err
		}
	}
	if g.mode == V1 {
		for c, base := range maps.Clone(g.bases) {
			dir := path.Join(base, g.dir)
			err := g.mkdir(dir)
			if err == nil && c == "cpuset" {
				err = g.inheritCPUs(dir)
			}
			if err != nil {
				g.missing[c] = err.Error()
				delete(g.bases, c)
				g.log.Warn("cgroup controller cannot be used", "controller", c, "err", err)
			}
		}
	}
	g.ready = true
	return nil
}

func (g *Groups) prepareV2() error {
	base := g.bases[""]
	dir := path.Join(base, g.dir)
	if err := g.mkdir(dir); err != nil {
		return volant.Errorf(volant.ErrPrecondition, "cgroups: make %s: %v", dir, err).
			WithRemedy("run as root on a writable %s", base)
	}
	for _, c := range wanted() {
		if g.missing[c] != "" {
			continue
		}
		for _, d := range []string{base, dir} {
			if err := g.enable(d, c); err != nil {
				g.missing[c] = fmt.Sprintf("switch it on in %s: %v", d, err)
				g.log.Warn("cgroup controller cannot be used", "controller", c, "err", err)
				break
			}
		}
	}
	return nil
}

// enable switches a controller on for the children of dir.
func (g *Groups) enable(dir, controller string) error {
	file := path.Join(dir, "cgroup.subtree_control")
	b, err := g.fs.ReadFile(file)
	if err != nil {
		return err
	}
	if slices.Contains(strings.Fields(string(b)), controller) {
		return nil
	}
	return g.fs.WriteFile(file, []byte("+"+controller))
}

func (g *Groups) mkdir(dir string) error {
	if err := g.fs.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// inheritCPUs gives a new cpuset of v1 its parent's CPUs and memory nodes; it would take no process without.
func (g *Groups) inheritCPUs(dir string) error {
	for _, f := range []string{"cpuset.mems", "cpuset.cpus"} {
		b, err := g.fs.ReadFile(path.Join(dir, f))
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(b)) != "" {
			continue
		}
		if b, err = g.fs.ReadFile(path.Join(path.Dir(dir), f)); err != nil {
			return err
		}
		if err := g.fs.WriteFile(path.Join(dir, f), []byte(strings.TrimSpace(string(b)))); err != nil {
			return err
		}
	}
	return nil
}

// Limit sets a machine's limits, in a group that is made if it is missing.
func (g *Groups) Limit(ctx context.Context, id volant.MachineID, l Limits) error {
	if _, err := g.make(ctx, string(id)); err != nil {
		return err
	}
	g.mu.Lock()
	writes := g.plan(string(id), l)
	g.mu.Unlock()
	var errs []error
	for _, w := range writes {
		err := g.fs.WriteFile(w.file, []byte(w.value))
		if err != nil && (!w.optional || !errors.Is(err, fs.ErrNotExist)) {
			errs = append(errs, fmt.Errorf("cgroup %s: write %q to %s: %w", id, w.value, w.file, err))
		}
	}
	return errors.Join(errs...)
}

// Pin binds a thread to one CPU.
func (g *Groups) Pin(tid, cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(tid, &set); err != nil {
		return fmt.Errorf("pin thread %d to CPU %d: %w", tid, cpu, err)
	}
	return nil
}

// Remove removes a machine's group, which must be empty. Idempotent.
func (g *Groups) Remove(ctx context.Context, id volant.MachineID) error {
	return g.Discard(ctx, string(id))
}

// Discard is Remove for a group that is no machine's.
func (g *Groups) Discard(ctx context.Context, name string) error {
	if !groupName.MatchString(name) {
		return volant.Invalidf("cgroup name %q: use lower-case letters, digits, '-' and '_'", name)
	}
	g.mu.Lock()
	bases := maps.Clone(g.bases)
	g.mu.Unlock()
	var errs []error
	for _, base := range bases {
		errs = append(errs, rmdir(ctx, g.fs, path.Join(base, g.dir, name)))
	}
	return errors.Join(errs...)
}

// rmdir removes a group. The kernel may take a moment to see that its last process has ended.
func rmdir(ctx context.Context, k kernel, dir string) error {
	const tries = 50
	for i := 0; ; i++ {
		err := k.Rmdir(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || i == tries {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w: %w", dir, err, ctx.Err())
		case <-time.After(4 * time.Millisecond):
		}
	}
}

// ours are the groups of this node which are no machine's.
func ours(name string) bool {
	return name == "server" || name == "proxy" || name == "mesh" || name == "announce"
}

// Sweep removes the groups of machines that keep does not name. It returns what it removed.
func (g *Groups) Sweep(ctx context.Context, keep func(volant.MachineID) bool) (removed []string, err error) {
	g.mu.Lock()
	bases := maps.Clone(g.bases)
	g.mu.Unlock()
	found := map[string]bool{}
	for _, base := range bases {
		names, err := g.fs.Subdirs(path.Join(base, g.dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list cgroups: %w", err)
		}
		for _, n := range names {
			found[n] = true
		}
	}
	var errs []error
	for _, n := range slices.Sorted(maps.Keys(found)) {
		if ours(n) || keep(volant.MachineID(n)) || !groupName.MatchString(n) {
			continue
		}
		if err := g.Discard(ctx, n); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, "cgroup "+n)
	}
	return removed, errors.Join(errs...)
}
