package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Init is PID 1. It never returns: the VM ends with it.
func Init() {
	if err := bootUp(); err != nil {
		report("init: %v", err)
		reboot()
	}
	env := []string{"GODEBUG=madvdontneed=1", "GOMEMLIMIT=24MiB"}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		report("init: %v", err)
		reboot()
	}
	pid, err := forkExec("/init", []string{"volant-agent"}, env, []*os.File{null, os.Stdout, os.Stderr})
	if err != nil {
		report("init: start the agent: %v", err)
		reboot()
	}
	for {
		var st unix.WaitStatus
		got, err := unix.Wait4(-1, &st, 0, nil)
		if got == pid {
			if !st.Exited() || st.ExitStatus() != 0 {
				report("init: the agent ended: status %#x", uint32(st))
			}
			reboot()
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			time.Sleep(time.Second) // no child at all cannot be while the agent lives
		}
	}
}

// bootUp mounts the kernel's file systems and loads the modules.
func bootUp() error {
	for _, m := range []struct{ fs, dir string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m.fs, m.dir, m.fs, unix.MS_NOSUID, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return loadModules("/m")
}

// loadModules loads what kernel.Load has put into the initrd, in the order of the names, and frees
// the memory of the files.
func loadModules(dir string) error {
	files, err := filepath.Glob(dir + "/*.ko")
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := loadModule(f); err != nil {
			return fmt.Errorf("load %s: %w", filepath.Base(f), err)
		}
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	return nil
}

func loadModule(file string) error {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }() // it was only read
	if err := unix.FinitModule(fd, "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// report writes a line to the console, for the host's post-mortem.
func report(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

// reboot ends the VM: the engines take a restart for its end. It does not return.
func reboot() {
	unix.Sync()
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	report("init: reboot: %v", err)
	for {
		time.Sleep(time.Hour)
	}
}
