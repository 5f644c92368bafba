package agent

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	appCgroup  = cgroupRoot + "/app"
	execCgroup = cgroupRoot + "/exec"
)

// makeCgroups makes the groups of the app and of execs, below a mount of them. The agent stays in
// the top group.
func makeCgroups(top string) error {
	err := os.WriteFile(top+"/cgroup.subtree_control", []byte("+memory +pids +cpu"), 0)
	if err != nil {
		return fmt.Errorf("cgroup controllers: %w", err)
	}
	for _, g := range []string{appCgroup, execCgroup} {
		if err := os.Mkdir(top+strings.TrimPrefix(g, cgroupRoot), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// oomKills counts the processes of a group that the kernel has killed for memory.
func oomKills(cgroup string) int {
	b, err := os.ReadFile(cgroup + "/memory.events")
	if err != nil {
		return 0
	}
	for l := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(l), "oom_kill "); ok {
			v, _ := strconv.Atoi(n) // the kernel's own number
			return v
		}
	}
	return 0
}

// killCgroup ends all processes of a group.
func killCgroup(cgroup string) error {
	err := os.WriteFile(cgroup+"/cgroup.kill", []byte("1"), 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
