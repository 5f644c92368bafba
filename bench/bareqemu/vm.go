package bareqemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/volant-edge/volant/guest"
)

// vm is one QEMU process.
type vm struct {
	r       *Runner
	dir     string
	memory  string
	scratch string
	cmd     *exec.Cmd
	qmp     net.Conn
	replies *bufio.Reader
	session *guest.Session
}

// boot starts a QEMU as the named machine, cold or from a snapshot, and opens a session with its agent.
func (r *Runner) boot(ctx context.Context, snapshot, machine string) (_ *vm, err error) {
	r.n++
	v := &vm{r: r, dir: filepath.Join(r.cfg.Dir, fmt.Sprint(r.n)), scratch: filepath.Join(r.cfg.Dir, machine+".img")}
	v.memory = filepath.Join(r.cfg.ShmDir, fmt.Sprintf("bare-%d-%d.mem", os.Getpid(), r.n))
	r.last = v
	defer func() {
		if err != nil {
			err = errors.Join(err, v.end())
		}
	}()
	if err := os.Mkdir(v.dir, 0o700); err != nil {
		return nil, err
	}
	from := filepath.Join(r.cfg.Dir, snapshot)
	if snapshot != "" {
		if err := command(ctx, "cp", "--sparse=always", filepath.Join(from, "memory"), v.memory); err != nil {
			return nil, err
		}
	}
	if r.cfg.Scratch != "" && snapshot != asleep { // a machine that slept keeps its own
		if err := command(ctx, "cp", "--sparse=always", r.cfg.Scratch, v.scratch); err != nil {
			return nil, err
		}
	}
	v.cmd = exec.Command("qemu-system-x86_64", v.args(snapshot != "")...)
	v.cmd.Dir, v.cmd.Stderr = v.dir, os.Stderr
	if err := v.cmd.Start(); err != nil {
		return nil, err
	}
	if v.qmp, err = connect(ctx, v.dir+"/qmp"); err != nil {
		return nil, err
	}
	v.replies = bufio.NewReader(v.qmp)
	if err := v.monitor(snapshot, from); err != nil {
		return nil, err
	}
	link, err := connect(ctx, v.dir+"/link")
	if err != nil {
		return nil, err
	}
	v.session, err = guest.Open(ctx, link)
	return v, err
}

// monitor does what the monitor must do before the agent answers.
func (v *vm) monitor(snapshot, from string) error {
	if _, err := v.replies.ReadBytes('\n'); err != nil { // the greeting
		return err
	}
	if err := errors.Join(v.do("qmp_capabilities", ""), v.do("migrate-set-capabilities",
		`{"capabilities":[{"capability":"x-ignore-shared","state":true}]}`)); err != nil || snapshot == "" {
		return err
	}
	if err := v.do("migrate-incoming", fmt.Sprintf(`{"uri":"exec:cat %s/state"}`, from)); err != nil {
		return err
	}
	return v.until("query-status", "running")
}

func (v *vm) args(incoming bool) []string {
	c := v.r.cfg
	a := strings.Fields(fmt.Sprintf("-M microvm,acpi=on,pit=off,pic=off,rtc=on,memory-backend=mem"+
		" -accel tcg,thread=multi,tb-size=64 -cpu Nehalem,+arat,-spec-ctrl -smp 1 -m %d"+
		" -object memory-backend-file,id=mem,size=%dM,mem-path=%s,share=on"+
		" -nodefaults -no-user-config -display none -no-reboot -global virtio-mmio.force-legacy=false -serial null"+
		" -qmp unix:qmp,server=on,wait=off"+
		" -drive id=d0,if=none,file=%s,format=raw,readonly=on,file.locking=off -device virtio-blk-device,drive=d0"+
		" -netdev tap,id=n0,ifname=%s,script=no,downscript=no -device virtio-net-device,netdev=n0,mac=%s"+
		" -device virtio-serial-device -chardev socket,id=link,path=link,server=on,wait=off -device virtserialport,chardev=link,name=ctl"+
		" -device virtio-rng-device",
		c.MemoryMiB, c.MemoryMiB, v.memory, c.RootFS, c.Tap, c.MAC))
	if c.Scratch != "" {
		a = append(a, "-drive", "id=d1,if=none,file="+v.scratch+",format=raw,discard=unmap", "-device", "virtio-blk-device,drive=d1")
	}
	if incoming {
		return append(a, "-incoming", "defer")
	}
	return append(a, "-kernel", c.Vmlinux, "-initrd", c.Initrd, "-append", fmt.Sprintf(
		"console=ttyS0 quiet panic=-1 reboot=t no_timer_check edd=off cryptomgr.notests 8250.nr_uarts=1"+
			" tsc_early_khz=%d tsc=reliable mitigations=off", c.TSCKHz))
}

// do executes a monitor command.
func (v *vm) do(name, args string) error {
	_, err := v.ask(name, args)
	return err
}

func (v *vm) ask(name, args string) (string, error) {
	if args == "" {
		args = "{}"
	}
	if _, err := fmt.Fprintf(v.qmp, `{"execute":%q,"arguments":%s}`+"\n", name, args); err != nil {
		return "", err
	}
	for {
		line, err := v.replies.ReadBytes('\n')
		if err != nil {
			return "", err
		}
		var m struct{ Return, Error json.RawMessage }
		if err := json.Unmarshal(line, &m); err != nil {
			return "", err
		}
		switch {
		case m.Error != nil:
			return "", fmt.Errorf("%s: %s", name, m.Error)
		case m.Return != nil:
			return string(m.Return), nil
		}
	}
}

// until asks until the answer has the status.
func (v *vm) until(name, status string) error {
	for range 10_000 {
		s, err := v.ask(name, "")
		if err != nil || strings.Contains(s, `"status": "`+status+`"`) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("%s never said %s", name, status)
}

// save writes a snapshot; the VM is of no use afterwards.
func (v *vm) save(name string) error {
	to := filepath.Join(v.r.cfg.Dir, name)
	if err := errors.Join(os.RemoveAll(to), os.Mkdir(to, 0o700)); err != nil {
		return err
	}
	if err := v.do("migrate", fmt.Sprintf(`{"uri":"exec:cat > %s/state"}`, to)); err != nil {
		return err
	}
	if err := v.until("query-migrate", "completed"); err != nil {
		return err
	}
	return command(context.Background(), "cp", "--sparse=always", v.memory, filepath.Join(to, "memory"))
}

// end kills the process and removes its files.
func (v *vm) end() error {
	if v.r.last == v {
		v.r.last = nil
	}
	if v.qmp != nil {
		v.qmp.Close() //nolint:errcheck // the process ends anyway
	}
	if v.cmd != nil && v.cmd.Process != nil {
		v.cmd.Process.Kill() //nolint:errcheck // it may have ended
		v.cmd.Wait()         //nolint:errcheck // it was killed
	}
	err := os.Remove(v.memory)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(v.dir))
}

// connect waits for a socket to appear and connects.
func connect(ctx context.Context, path string) (net.Conn, error) {
	for {
		c, err := net.Dial("unix", path)
		if err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		time.Sleep(time.Millisecond)
	}
}
