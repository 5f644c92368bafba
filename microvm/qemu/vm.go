package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/volant-edge/volant/microvm"
)

// lastMoment is how long a process may take from closing its monitor to its end.
const lastMoment = time.Second

// The names of a VM's sockets in its directory.
const (
	monitorSocket = "qmp.sock"
	linkSocket    = "link.sock"
)

// vm is a microVM: a process, its monitor, its link.
type vm struct {
	e      *Engine
	dir    string // its own
	mem    string // path of its memory file
	memory *os.File
	handle microvm.Handle
	build  string
	clock  int // kHz
	proc   *process
	mon    *monitor
	change chan struct{} // holds one while a call changes the VM
	done   chan struct{}
	opened chan struct{} // closed when the guest first opens its port

	mu     sync.Mutex
	link   net.Conn       // guarded by mu
	killed bool           // guarded by mu; by Kill, while it ran
	closed bool           // guarded by mu; let go
	asked  bool           // guarded by mu; the guest asked for its end
	exit   microvm.VMExit // guarded by mu
	moves  chan string    // guarded by mu; the statuses of a migration that is waited for
}

func (v *vm) ID() string             { return v.handle.ID }
func (v *vm) Handle() microvm.Handle { return v.handle }
func (v *vm) Done() <-chan struct{}  { return v.done }

// Exit is valid after Done.
func (v *vm) Exit() microvm.VMExit {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.exit
}

// spawn starts the process, places it, and connects its monitor.
func (v *vm) spawn(ctx context.Context, host found, spec microvm.Spec, state *os.File) error {
	files := make([]*os.File, 0, 3)
	defer func() {
		for _, f := range files {
			f.Close() //nolint:errcheck // the process has its own
		}
	}()
	for _, name := range []string{monitorSocket, linkSocket} {
		f, err := listen(v.dir, name)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	c := command{spec: spec, memory: v.mem, accel: host.Accel, tscKHz: host.TSCKHz, user: v.e.user(spec.ID), restore: state != nil}
	pass := files
	if state != nil {
		pass = append(pass, state)
	}
	var err error
	if v.proc, err = spawn(host.Binary, v.dir, host.Build, c.args(), pass...); err != nil {
		return err
	}
	v.handle.PID, v.handle.StartTime = v.proc.pid, v.proc.started
	go v.watch()
	if spec.Placed != nil {
		if err := spec.Placed(v.proc.pid); err != nil {
			return err
		}
	}
	return v.connect(ctx)
}

func (v *vm) connect(ctx context.Context) error {
	c, err := dial(ctx, v.dir, monitorSocket)
	if err != nil {
		return v.because(err)
	}
	v.mon = newMonitor(c, v.event)
	return nil
}

// settings are the commands that open a session and make migrations leave the memory out.
func (v *vm) settings() []request {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	return []request{
		call("qmp_capabilities", nil),
		call("migrate-set-capabilities", map[string]any{"capabilities": []capability{{"x-ignore-shared", true}, {"events", true}}}),
		call("migrate-set-parameters", map[string]any{"max-bandwidth": 10 << 30}),
	}
}

// event is called by the monitor's reader.
func (v *vm) event(name string, data json.RawMessage) {
	switch name {
	case "SHUTDOWN":
		d, err := decode[struct {
			Guest bool `json:"guest"`
		}](data)
		v.mu.Lock()
		v.asked = err == nil && d.Guest
		v.mu.Unlock()
	case "VSERPORT_CHANGE":
		d, err := decode[struct {
			Open bool `json:"open"`
		}](data)
		if err == nil && d.Open {
			v.mu.Lock()
			defer v.mu.Unlock()
			select {
			case <-v.opened:
			default:
				close(v.opened)
			}
		}
	case "MIGRATION":
		d, err := decode[struct {
			Status string `json:"status"`
		}](data)
		v.mu.Lock()
		defer v.mu.Unlock()
		if err == nil && v.moves != nil {
			select {
			case v.moves <- d.Status:
			default: // has room for more than a migration has statuses
			}
		}
	}
}

// watch waits for the process' end and closes done, unless the VM is let go before.
func (v *vm) watch() {
	exit, err := v.proc.wait()
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		return
	}
	if err != nil {
		exit.Log += fmt.Sprintf("wait for the process: %v\n", err)
	}
	if exit.Killed = v.killed; exit.Killed {
		exit.Code, exit.Signal = 0, 9
	} else if exit.Code < 0 && v.asked {
		exit.Code = 0
	}
	v.exit = exit
	v.mu.Unlock()
	v.closeLink()
	v.memory.Close()                                                            //nolint:errcheck // its content is worthless now
	if err := os.Remove(v.mem); err != nil && !errors.Is(err, os.ErrNotExist) { // gives the memory back before Remove
		v.e.log.Warn("memory file left behind", "machine", v.handle.ID, "err", err)
	}
	v.e.log.Debug("vmm ended", "machine", v.handle.ID, "code", exit.Code, "signal", exit.Signal, "killed", exit.Killed)
	close(v.done)
}

// letGo drops what this process holds of the VM.
func (v *vm) letGo() {
	v.mu.Lock()
	v.closed = true
	v.mu.Unlock()
	if v.mon != nil {
		v.mon.close()
	}
	v.closeLink()
	v.proc.release()
	if v.memory != nil {
		v.memory.Close() //nolint:errcheck // nothing was written by it
	}
	v.e.drop(v)
}

// because turns an error of a VM whose process has ended into one that says so.
func (v *vm) because(err error) error {
	if err == nil || v.proc == nil || !errors.Is(err, errMonitor) && !v.ended() {
		return err
	}
	select {
	case <-v.done:
	case <-time.After(lastMoment):
		return err
	}
	exit := v.Exit()
	said := strings.ReplaceAll(strings.TrimSpace(exit.Log), "\n", "; ")
	return fmt.Errorf("%w: code %d, signal %d: %q (%w)", microvm.ErrGone, exit.Code, exit.Signal, said, err)
}

// ended says whether the process has ended, by what the kernel knows now.
func (v *vm) ended() bool {
	select {
	case <-v.done:
		return true
	default:
	}
	raw, err := v.proc.pidfd.SyscallConn()
	if err != nil {
		return false
	}
	var is bool
	err = raw.Control(func(fd uintptr) { is = ready(int(fd)) })
	return err == nil && is
}

// do runs a call that changes the VM, alone.
func (v *vm) do(ctx context.Context, what string, fn func() error) error {
	select {
	case v.change <- struct{}{}:
		defer func() { <-v.change }()
	case <-ctx.Done():
		return fmt.Errorf("%s vm %s: %w", what, v.handle.ID, ctx.Err())
	}
	if err := fn(); err != nil {
		return fmt.Errorf("%s vm %s: %w", what, v.handle.ID, v.because(err))
	}
	return nil
}

// Resume runs the vCPUs.
func (v *vm) Resume(ctx context.Context) error {
	return v.do(ctx, "resume", func() error {
		_, err := v.mon.do(ctx, nil, call("cont", nil))
		return err
	})
}

// Pause stops the vCPUs.
func (v *vm) Pause(ctx context.Context) error {
	return v.do(ctx, "pause", func() error {
		_, err := v.mon.do(ctx, nil, call("stop", nil))
		return err
	})
}

// OpenLink connects to the guest's port. QEMU serves one connection at a time, so the one before ends.
func (v *vm) OpenLink(ctx context.Context) (io.ReadWriteCloser, error) {
	v.closeLink()
	c, err := dial(ctx, v.dir, linkSocket)
	if err != nil {
		return nil, fmt.Errorf("open link to vm %s: %w", v.handle.ID, v.because(err))
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.link != nil {
		v.link.Close() //nolint:errcheck // the later of two calls at once wins
	}
	v.link = c
	return link{c}, nil
}

// link is a connection that its VM may have closed before its user does.
type link struct{ net.Conn }

func (l link) Close() error {
	if err := l.Conn.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (v *vm) closeLink() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.link != nil {
		v.link.Close() //nolint:errcheck // whoever reads it is told
		v.link = nil
	}
}

// VCPUThreads asks QEMU for its threads.
func (v *vm) VCPUThreads(ctx context.Context) ([]int, error) {
	raw, err := v.mon.do(ctx, nil, call("query-cpus-fast", nil))
	if err != nil {
		return nil, fmt.Errorf("threads of vm %s: %w", v.handle.ID, v.because(err))
	}
	cpus, err := decode[[]struct {
		Thread int `json:"thread-id"`
	}](raw)
	if err != nil {
		return nil, fmt.Errorf("threads of vm %s: %w", v.handle.ID, err)
	}
	ids := make([]int, len(cpus))
	for i, c := range cpus {
		ids[i] = c.Thread
	}
	return ids, nil
}

// Kill ends the process.
func (v *vm) Kill(ctx context.Context) error {
	v.mu.Lock()
	ran, err := v.proc.kill()
	v.killed = v.killed || ran
	v.mu.Unlock()
	if err != nil && !v.isDone() {
		return fmt.Errorf("kill vm %s: %w", v.handle.ID, err)
	}
	select {
	case <-v.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("kill vm %s: %w", v.handle.ID, ctx.Err())
	}
}

func (v *vm) isDone() bool {
	select {
	case <-v.done:
		return true
	default:
		return false
	}
}

// Remove deletes the VM's directory; its memory file went with the process.
func (v *vm) Remove(context.Context) error {
	if !v.isDone() {
		return fmt.Errorf("remove vm %s: it runs: %w", v.handle.ID, microvm.ErrState)
	}
	if v.mon != nil {
		v.mon.close()
	}
	v.proc.release()
	v.e.drop(v)
	if err := os.RemoveAll(v.dir); err != nil {
		return fmt.Errorf("remove vm %s: %w", v.handle.ID, err)
	}
	return nil
}

// discard undoes a VM that was half made.
func (v *vm) discard(ctx context.Context) error {
	if v.proc != nil {
		if err := v.Kill(ctx); err != nil {
			return err
		}
		return v.Remove(ctx)
	}
	v.memory.Close() //nolint:errcheck // it is deleted
	return errors.Join(os.Remove(v.mem), os.RemoveAll(v.dir))
}
