package cgroup_test

import (
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// unified plays the kernel's cgroup v2: control files appear with a group as far as its parent has
// switched their controllers on, and the kernel's own refusals are made.
type unified struct {
	mu    sync.Mutex
	files map[string]string // path → content
	dirs  map[string]bool
	procs map[string]string // pid → group
	busy  map[string]int    // group → how often its removal is refused yet
}

const root = "/sys/fs/cgroup"

func newUnified(controllers string) *unified {
	u := &unified{files: map[string]string{}, dirs: map[string]bool{root: true}, procs: map[string]string{}, busy: map[string]int{}}
	u.files[root+"/cgroup.controllers"] = controllers
	u.files[root+"/cgroup.subtree_control"] = ""
	u.files[root+"/cgroup.procs"] = ""
	return u
}

var controllerFiles = map[string][]string{
	"cpu":    {"cpu.weight", "cpu.max", "cpu.max.burst"},
	"cpuset": {"cpuset.cpus", "cpuset.mems"},
	"memory": {"memory.max", "memory.swap.max", "memory.oom.group", "memory.current", "memory.events"},
	"pids":   {"pids.max"},
}

func (u *unified) ReadFile(name string) ([]byte, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s, ok := u.files[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return []byte(s), nil
}

func (u *unified) Mkdir(name string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.dirs[name] {
		return fs.ErrExist
	}
	parent := path.Dir(name)
	if !u.dirs[parent] {
		return fs.ErrNotExist
	}
	u.dirs[name] = true
	u.files[name+"/cgroup.controllers"] = u.files[parent+"/cgroup.subtree_control"]
	for _, f := range []string{"cgroup.subtree_control", "cgroup.procs", "cpu.stat"} {
		u.files[name+"/"+f] = ""
	}
	u.offer(name)
	return nil
}

// offer makes the files of the controllers that a group has.
func (u *unified) offer(dir string) {
	for c := range strings.FieldsSeq(u.files[dir+"/cgroup.controllers"]) {
		for _, f := range controllerFiles[c] {
			if _, ok := u.files[dir+"/"+f]; !ok {
				u.files[dir+"/"+f] = ""
			}
		}
	}
}

func (u *unified) WriteFile(name string, b []byte) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, ok := u.files[name]; !ok {
		return fs.ErrNotExist
	}
	dir, file := path.Dir(name), path.Base(name)
	value := string(b)
	switch file {
	case "cgroup.subtree_control":
		return u.enable(dir, strings.TrimPrefix(value, "+"))
	case "cgroup.procs":
		if pid, err := strconv.Atoi(value); err != nil || pid > 1000 {
			return unix.ESRCH
		}
		if u.files[dir+"/cgroup.subtree_control"] != "" && dir != root {
			return unix.EBUSY // only leaves hold processes
		}
		u.procs[value] = dir
		return nil
	case "cpu.max.burst":
		quota, _, _ := strings.Cut(u.files[dir+"/cpu.max"], " ")
		q, _ := strconv.Atoi(quota)
		if b, err := strconv.Atoi(value); err != nil || b > q && b > 0 {
			return unix.EINVAL
		}
	case "cpu.max":
		quota, _, _ := strings.Cut(value, " ")
		q, _ := strconv.Atoi(quota)
		if b, _ := strconv.Atoi(u.files[dir+"/cpu.max.burst"]); quota != "max" && b > q {
			return unix.EINVAL
		}
	}
	u.files[name] = value
	return nil
}

func (u *unified) enable(dir, controller string) error {
	if !slices.Contains(strings.Fields(u.files[dir+"/cgroup.controllers"]), controller) {
		return fs.ErrNotExist
	}
	for _, g := range u.procs {
		if g == dir && dir != root {
			return unix.EBUSY
		}
	}
	u.files[dir+"/cgroup.subtree_control"] += " " + controller
	for d := range u.dirs {
		if path.Dir(d) == dir && d != dir {
			u.files[d+"/cgroup.controllers"] += " " + controller
			u.offer(d)
		}
	}
	return nil
}

func (u *unified) Rmdir(name string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.dirs[name] {
		return fs.ErrNotExist
	}
	if u.busy[name] > 0 {
		u.busy[name]--
		return unix.EBUSY
	}
	for _, g := range u.procs {
		if g == name {
			return unix.EBUSY
		}
	}
	delete(u.dirs, name)
	for f := range u.files {
		if path.Dir(f) == name {
			delete(u.files, f)
		}
	}
	return nil
}

func (u *unified) Subdirs(name string) ([]string, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.dirs[name] {
		return nil, fs.ErrNotExist
	}
	var out []string
	for d := range u.dirs {
		if path.Dir(d) == name && d != name {
			out = append(out, path.Base(d))
		}
	}
	return out, nil
}

func (u *unified) read(name string) string {
	b, err := u.ReadFile(root + "/volant-0badcafe/" + name)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
