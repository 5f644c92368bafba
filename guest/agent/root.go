package agent

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant/guest"
)

var errNoImage = errors.New("there is no read-only disk with the image")

// findDisks returns the image, which is the read-only disk, and the writable one; "" if there is none.
func findDisks(block string) (image, scratch string, err error) {
	entries, err := os.ReadDir(block)
	if err != nil {
		return "", "", err
	}
	for _, e := range entries { // sorted by name
		if !strings.HasPrefix(e.Name(), "vd") {
			continue
		}
		ro, err := os.ReadFile(filepath.Join(block, e.Name(), "ro"))
		if err != nil {
			return "", "", err
		}
		switch readOnly := strings.TrimSpace(string(ro)) == "1"; {
		case readOnly && image == "":
			image = "/dev/" + e.Name()
		case !readOnly && scratch == "":
			scratch = "/dev/" + e.Name()
		}
	}
	return image, scratch, nil
}

// root is what must be undone at Shutdown.
type root struct {
	rw *os.File // the writable layer's mount, nil if that is memory
}

// mountRoot mounts the image under a writable layer and makes that this process's root.
func mountRoot(c guest.Config, image, scratch string) (root, error) {
	var r root
	if image == "" {
		return r, errNoImage
	}
	err := mount(image, "/lower", cmp.Or(c.RootFS, "erofs"), unix.MS_RDONLY, "")
	if err != nil {
		return r, err
	}
	switch {
	case !c.Scratch:
		err = mount("scratch", "/rw", "tmpfs", 0, "size=50%,mode=755")
	case scratch == "":
		err = errors.New("there is no writable disk")
	default:
		err = mount(scratch, "/rw", "ext4", unix.MS_NOATIME, "")
	}
	if err != nil {
		return r, err
	}
	if c.Scratch {
		if r.rw, err = os.Open("/rw"); err != nil {
			return r, err
		}
	}
	if err := overlay(); err != nil {
		return r, err
	}
	return r, enter("/newroot")
}

// overlay mounts /lower under /rw as /newroot. The top directory's owner and mode come from the
// upper layer, so they are copied there.
func overlay() error {
	for _, d := range []string{"/rw/upper", "/rw/work"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Stat("/lower", &st); err != nil {
		return err
	}
	if err := likeTop(st); err != nil {
		return fmt.Errorf("top directory: %w", err)
	}
	return mount("overlay", "/newroot", "overlay", 0, "lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work")
}

// likeTop gives the upper layer's top directory owner and mode of the image's.
func likeTop(image unix.Stat_t) error {
	var have unix.Stat_t
	if err := unix.Stat("/rw/upper", &have); err != nil {
		return err
	}
	if have.Uid != image.Uid || have.Gid != image.Gid {
		if err := unix.Chown("/rw/upper", int(image.Uid), int(image.Gid)); err != nil {
			return err
		}
	}
	if have.Mode&0o7777 != image.Mode&0o7777 {
		return unix.Chmod("/rw/upper", image.Mode&0o7777)
	}
	return nil
}

// enter mounts what programs expect below dir and makes dir this process's root.
func enter(dir string) error {
	for _, d := range []string{"/proc", "/sys", "/dev"} {
		if err := makeDir(dir+d, 0o755); err != nil {
			return err
		}
	}
	if err := makeDir(dir+"/tmp", 0o1777); err != nil {
		return err
	}
	for _, m := range []struct {
		fs, dir, data string
		flags         uintptr
	}{
		{"proc", "/proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"sysfs", "/sys", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"devtmpfs", "/dev", "", unix.MS_NOSUID},
		{"devpts", "/dev/pts", "mode=620,ptmxmode=666,gid=5", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"tmpfs", "/dev/shm", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
		{"mqueue", "/dev/mqueue", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"cgroup2", cgroupRoot, "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	} {
		if err := makeDir(dir+m.dir, 0o755); err != nil {
			return err
		}
		if err := mount(m.fs, dir+m.dir, m.fs, m.flags, m.data); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink("/proc/self/"+to, dir+"/dev/"+name); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return moveRoot(dir)
}

// moveRoot puts dir on top of / and goes there. PID 1 stays below.
func moveRoot(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	return unix.Chdir("/")
}

// makeDir makes a directory if there is none. What an image has in its place, say a link, goes.
func makeDir(dir string, mode uint32) error {
	if st, err := os.Lstat(dir); err == nil {
		if st.IsDir() {
			return nil
		}
		if err := os.Remove(dir); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return unix.Chmod(dir, mode)
}

func mount(src, dir, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(src, dir, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", src, dir, err)
	}
	return nil
}

// close writes out the writable layer and leaves its disk clean. No process may write any more.
func (r root) close() error {
	unix.Sync()
	if r.rw == nil {
		return nil
	}
	// Unmounting one's own root makes it read-only.
	if err := unix.Unmount("/", 0); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	at := fmt.Sprintf("/proc/self/fd/%d", r.rw.Fd())
	if err := unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make the writable disk read-only: %w", err)
	}
	return nil
}
