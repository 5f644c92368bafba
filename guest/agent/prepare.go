package agent

import (
	"encoding/json"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant/guest"
)

// prepared is what of Configure's work needs no config. It is done at boot, so that the clones of a
// template find it done. They also have its devices, bound to their drivers: every guest has the same MAC
// address, and the disks of a template are larger than any that takes their place, since a guest never asks
// again how large one is. What a file system does not reach of them is not there.
type prepared struct {
	image, scratch string              // the disks, "" for one that is not there
	link           int                 // eth0's index, 0 if there is none
	etc            map[string]*os.File // files in the initrd's memory, to be bound over the image's
}

// etcNames are the files that tell a program where it is.
var etcNames = []string{"hostname", "hosts", "resolv.conf"}

// rehearsal is a request of all fields: reading one for the first time takes much longer than later.
const rehearsal = `{"hostname":"h","now":"2006-01-02T15:04:05Z","entropy":"AAAA","root_fs":"erofs","scratch":true,"net":{"addr":"10.0.0.2/32",
"gateway":"10.0.0.1","addr6":"fd00::2/128","gateway6":"fd00::1","mtu":1400,"dns":["10.0.0.3"]},"args":["a"],"env":{"a":"b"},"user":"u","work_dir":"/",
"hosts":{"a":"10.0.0.4"}}`

func prepare() (prepared, error) {
	var p prepared
	for _, d := range []string{"/lower", "/rw", "/newroot", "/etc", "/cgroup"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return p, err
		}
	}
	var err error
	if p.image, p.scratch, err = findDisks("/sys/block"); err != nil {
		return p, fmt.Errorf("find the disks: %w", err)
	}
	p.etc = map[string]*os.File{}
	for _, name := range etcNames {
		if p.etc[name], err = os.Create("/etc/" + name); err != nil {
			return p, err
		}
	}
	// The groups belong to the kernel, not to this mount of them.
	if err := mount("cgroup2", "/cgroup", "cgroup2", 0, ""); err != nil {
		return p, err
	}
	if err := makeCgroups("/cgroup"); err != nil {
		return p, err
	}
	if err := unix.Unmount("/cgroup", 0); err != nil {
		return p, err
	}
	if err := setUpLoopback(); err != nil {
		return p, err
	}
	if p.link, err = setUpLink(); err != nil {
		return p, err
	}
	if err := json.Unmarshal([]byte(rehearsal), &guest.Config{}); err != nil {
		return p, err
	}
	// The first call finds out, by processes it starts, how the kernel's are waited for.
	_, err = os.FindProcess(os.Getpid())
	return p, err
}
