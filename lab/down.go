package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
)

// Down takes the lab away: processes, namespaces, what its nodes made outside them, and its directory.
func (l *Lab) Down(ctx context.Context) error {
	_, err := Down(ctx, l.plan.Name, l.plan.Dir)
	return err
}

// Down takes the lab of that name and directory away, in whatever state it is, and says what it ended. It looks for all
// that bears the name, whatever the record says.
func Down(ctx context.Context, name, dir string) (done []string, err error) {
	if !labName.MatchString(name) {
		return nil, volant.Invalidf("lab name %q: use 1 to 12 lower-case letters and digits", name)
	}
	if err := Check(); err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	d := &downer{dir: dir, prefix: "vlab-" + name + "-"}
	if d.bin, err = os.Executable(); err != nil {
		return nil, err
	}
	s, err := loadState(dir)
	recorded := !errors.Is(err, fs.ErrNotExist)
	switch {
	case !recorded: // it may have been lost
	case err != nil:
		d.say("the record cannot be read: %v", err)
	case s.Config.Name != name:
		return nil, volant.Errorf(volant.ErrPrecondition, "the lab in %s has the name %s, not %s", dir, s.Config.Name, name).
			WithRemedy("say --name %s", s.Config.Name)
	default:
		d.bin = s.Config.Bin
		unlock, err := lock(ctx, dir)
		if err != nil {
			return nil, err
		}
		defer unlock()
	}
	err = d.run(ctx, recorded)
	return d.done, err
}

// downer takes one lab away.
type downer struct {
	dir, prefix, bin string
	done             []string
}

func (d *downer) say(format string, args ...any) {
	d.done = append(d.done, fmt.Sprintf(format, args...))
}

func (d *downer) run(ctx context.Context, recorded bool) error {
	spaces, err := namespaces(d.prefix)
	if err != nil {
		return err
	}
	if len(spaces) == 0 && !recorded {
		return none(d.dir)
	}
	n, err := end(ctx, func() ([]Process, error) { return processesIn(spaces...) })
	if err != nil {
		return err
	}
	if n > 0 {
		d.say("ended %d processes", n)
	}
	for _, ns := range spaces {
		node := strings.TrimPrefix(ns, d.prefix)
		_, number, _ := strings.Cut(node, "-") // of a server; that of its machines, routers and clients is none
		if _, err := strconv.Atoi(number); err == nil && recorded {
			if err := d.cleanNode(ctx, ns, node); err != nil {
				return err
			}
		}
	}
	if _, err := end(ctx, func() ([]Process, error) { return wireProcesses(d.dir) }); err != nil {
		return err
	}
	for _, ns := range spaces {
		if err := delNS(ctx, ns); err != nil {
			return err
		}
	}
	if len(spaces) > 0 {
		d.say("removed %d namespaces", len(spaces))
	}
	if recorded {
		d.say("removed %s", d.dir)
		return os.RemoveAll(d.dir)
	}
	return nil
}

// cleanNode removes what a node made beside its namespace and directory: cgroups and memory files.
func (d *downer) cleanNode(ctx context.Context, ns, node string) error {
	data := filepath.Join(d.dir, node)
	if _, err := os.Stat(filepath.Join(data, "FORMAT")); err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.bin, "--data", data, "cleanup", "--yes")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := inside(ns, cmd.Start); err != nil {
		return fmt.Errorf("clean up %s: %w", node, err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("clean up %s: %w: %s", node, err, out.String())
	}
	d.say("cleaned up after %s", node)
	return nil
}
