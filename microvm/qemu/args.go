package qemu

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/volant-edge/volant/microvm"
)

// The accelerators.
const (
	accelKVM = "kvm"
	accelTCG = "tcg"
)

// The descriptors a process starts with, after the standard three.
const (
	fdQMP   = 3
	fdLink  = 4
	fdState = 5 // of a restore: the state file
)

// LinkPort is the name of the guest's virtio-serial port.
const LinkPort = "ctl"

// sandbox is QEMU's own filter of system calls.
const sandbox = "on,obsolete=deny,spawn=deny,resourcecontrol=deny"

// command is what a QEMU command line depends on.
type command struct {
	spec    microvm.Spec
	memory  string // path of the memory file
	accel   string
	tscKHz  int    // of the host; for TCG
	user    string // uid:gid to become, or ""
	restore bool   // wait for a state instead of booting the kernel
}

// args returns the arguments after the program's name. The VM does not run yet.
func (c command) args() []string {
	cpu, accel := "host", "kvm"
	if c.accel == accelTCG {
		// Nehalem is what an emulated CPU runs fastest; arat keeps the guest's timers fine and its idle cheap.
		cpu, accel = "Nehalem,+arat,-spec-ctrl", "tcg,thread=multi,tb-size=64"
	}
	a := []string{
		"-name", "guest=" + c.spec.ID + ",debug-threads=on",
		"-M", "microvm,acpi=on,pit=off,pic=off,rtc=on,memory-backend=mem",
		"-accel", accel, "-cpu", cpu,
		"-smp", strconv.Itoa(c.spec.VCPUs), "-m", strconv.Itoa(c.spec.MemoryMiB) + "M",
		"-object", fmt.Sprintf("memory-backend-file,id=mem,size=%dM,mem-path=%s,share=on", c.spec.MemoryMiB, comma(c.memory)),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-S",
		"-global", "virtio-mmio.force-legacy=false",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", fdQMP), "-mon", "chardev=qmp,mode=control",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
	}
	if c.user == "" {
		a = append(a, "-sandbox", sandbox+",elevateprivileges=deny")
	} else {
		// The filter would also refuse what runas does. Nothing is left to elevate afterwards.
		a = append(a, "-sandbox", sandbox, "-runas", c.user)
	}
	for i, d := range c.spec.Drives {
		a = append(a, drive(i, d)...)
	}
	for i, n := range c.spec.NICs {
		a = append(a,
			"-netdev", fmt.Sprintf("tap,id=n%d,ifname=%s,script=no,downscript=no,vhost=off", i, comma(n.Tap)),
			"-device", fmt.Sprintf("virtio-net-device,netdev=n%d,mac=%s", i, n.MAC))
	}
	a = append(a,
		"-device", "virtio-serial-device",
		"-chardev", fmt.Sprintf("socket,id=link,fd=%d,server=on,wait=off", fdLink),
		"-device", "virtserialport,id=link,chardev=link,name="+LinkPort,
		"-device", "virtio-rng-device")
	if c.restore {
		return append(a, "-incoming", "defer")
	}
	return append(a, "-kernel", c.spec.Kernel, "-initrd", c.spec.Initrd, "-append", c.bootArgs())
}

// bootArgs is the kernel's command line. It carries no secret: all guests of a size have the same.
func (c command) bootArgs() string {
	// The triple fault of reboot=t ends a restored QEMU too; the reset by ACPI does not.
	a := "console=ttyS0 quiet panic=-1 reboot=t no_timer_check edd=off cryptomgr.notests 8250.nr_uarts=1"
	if c.accel == accelTCG {
		a += fmt.Sprintf(" tsc_early_khz=%d tsc=reliable mitigations=off", c.tscKHz)
	}
	return a
}

func drive(i int, d microvm.Drive) []string {
	o := fmt.Sprintf("id=d%d,if=none,file=%s,format=raw", i, comma(d.Path))
	if d.ReadOnly {
		o += ",readonly=on,file.locking=off" // many VMs share it
	} else {
		o += ",discard=unmap,auto-read-only=off" // auto would open the file anew, which another user may not
	}
	return []string{"-drive", o, "-device", fmt.Sprintf("virtio-blk-device,drive=d%d", i)}
}

// comma escapes a value for QEMU's option lists.
func comma(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// shape identifies what in the command line a snapshot depends on.
func shape(accel string) string {
	c := command{accel: accel, memory: "mem", restore: true, spec: microvm.Spec{
		ID: "shape", VCPUs: 1, MemoryMiB: 1,
		Drives: []microvm.Drive{{Path: "ro", ReadOnly: true}, {Path: "rw"}},
		NICs:   []microvm.NIC{{Tap: "tap", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}},
	}}
	sum := sha256.Sum256([]byte(strings.Join(c.args(), "\n")))
	return hex.EncodeToString(sum[:])
}
