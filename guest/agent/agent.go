package agent

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant/guest"
)

const (
	ringBytes  = 1 << 20
	openFiles  = 65536
	openFilesH = 1 << 20
	killTime   = 5 * time.Second // for processes to go after SIGKILL
)

// Main is the agent's process. It returns its exit code when the VM shall end.
func Main() int {
	p, err := openPort()
	if err != nil {
		report("agent: %v", err)
		return 1
	}
	oomScore("-900")
	id, err := randomID()
	if err != nil {
		report("agent: %v", err)
		return 1
	}
	ready, err := prepare()
	if err != nil {
		report("agent: prepare: %v", err)
		return 1
	}
	a := &agent{bootID: id, prepared: ready, ring: guest.NewRing(ringBytes)}
	err = guest.Serve(context.Background(), p, a)
	if errors.Is(err, guest.ErrShutdown) {
		return 0
	}
	report("agent: %v", err)
	return 1
}

// randomID makes a name by the kernel's random numbers.
func randomID() (string, error) {
	var b [16]byte
	_, err := unix.Getrandom(b[:], unix.GRND_INSECURE) // a name must differ, it need not be secret
	return hex.EncodeToString(b[:]), err
}

// agent is the Backend of a real guest.
type agent struct {
	prepared prepared
	ring     *guest.Ring

	mu      sync.Mutex
	bootID  string
	touched bool          // Configure was called
	config  *guest.Config // nil until it is done
	root    root
	app     *app // the last run; nil before the first
}

func (a *agent) Hello() guest.Hello {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := guest.Hello{Version: guest.Version, BootID: a.bootID, Configured: a.config != nil}
	if a.app != nil {
		if h.Running = a.app.running(); !h.Running {
			h.Exit = &a.app.exit
		}
	}
	return h
}

// Configure does its work once: half of it cannot be undone.
func (a *agent) Configure(_ context.Context, c guest.Config) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.touched {
		return guest.Errorf(guest.KindPrecondition, "the guest is configured already, or could not be")
	}
	a.touched = true
	if err := errors.Join(setClock(c.Now), addEntropy(c.Entropy)); err != nil {
		return err
	}
	var err error
	if a.bootID, err = randomID(); err != nil { // a template's clones must not share it
		return err
	}
	if a.root, err = setUpRoot(c, a.prepared); err != nil {
		return err
	}
	if err := setUpNet(c.Net, a.prepared.link); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	// By package syscall, which otherwise gives children the limit the agent was started with.
	limit := syscall.Rlimit{Cur: openFiles, Max: openFilesH}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("set the limit of open files: %w", err)
	}
	a.config = &c
	return nil
}

// setUpRoot makes the image this process's root, with all that a program looks for there.
func setUpRoot(c guest.Config, p prepared) (root, error) {
	r, err := mountRoot(c, p.image, p.scratch)
	if err != nil {
		return root{}, err
	}
	return r, bindEtc(p.etc, etcFiles(c))
}

// configured returns the config, and the last run of the app if there was one.
func (a *agent) configured() (guest.Config, *app, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.config == nil {
		return guest.Config{}, nil, guest.Errorf(guest.KindPrecondition, "the guest is not configured")
	}
	return *a.config, a.app, nil
}

func (a *agent) Put(_ context.Context, f guest.File) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.config == nil {
		return guest.Errorf(guest.KindPrecondition, "the guest is not configured")
	}
	return putFile("/", f)
}

func (a *agent) Start(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.config == nil {
		return guest.Errorf(guest.KindPrecondition, "the guest is not configured")
	}
	if a.app != nil && a.app.running() {
		return guest.Errorf(guest.KindPrecondition, "the app runs already")
	}
	run, err := startApp(*a.config, a.ring)
	if err != nil {
		a.ring.Append("init", "the app does not start: "+err.Error())
		return err
	}
	a.app = run
	return nil
}

// started returns the app if it was started.
func (a *agent) started() (*app, error) {
	_, run, err := a.configured()
	if err == nil && run == nil {
		err = guest.Errorf(guest.KindPrecondition, "the app was not started")
	}
	return run, err
}

func (a *agent) Wait(ctx context.Context) (guest.Exit, error) {
	run, err := a.started()
	if err != nil {
		return guest.Exit{}, err
	}
	select {
	case <-run.done:
		return run.exit, nil
	case <-ctx.Done():
		return guest.Exit{}, ctx.Err()
	}
}

func (a *agent) Signal(_ context.Context, sig int) error {
	run, err := a.started()
	if err != nil {
		return err
	}
	if sig < 1 || sig > 64 {
		return guest.Errorf(guest.KindInvalid, "there is no signal %d", sig)
	}
	if err := run.proc.Signal(syscall.Signal(sig)); errors.Is(err, os.ErrProcessDone) {
		return guest.Errorf(guest.KindPrecondition, "the app has ended")
	} else if err != nil {
		return err
	}
	return nil
}

func (a *agent) Exec(ctx context.Context, e guest.Exec) (guest.Exit, error) {
	c, _, err := a.configured()
	if err != nil {
		return guest.Exit{}, err
	}
	user, dir := e.User, e.Dir
	if user == "" {
		user = c.User
	}
	if dir == "" {
		dir = c.WorkDir
	}
	return runExec(ctx, e, c.Env, user, dir)
}

func (a *agent) Logs(ctx context.Context, from uint64, fn func(guest.LogLine) error) error {
	return a.ring.Follow(ctx, from, fn)
}

func (a *agent) Thaw(_ context.Context, t guest.Thaw) error {
	return errors.Join(setClock(t.Now), addEntropy(t.Entropy))
}

func (a *agent) Freeze(context.Context) error {
	unix.Sync()
	return nil
}

func countProcesses() int {
	n := 0
	for _, g := range []string{appCgroup, execCgroup} {
		if b, err := os.ReadFile(g + "/cgroup.procs"); err == nil {
			n += strings.Count(string(b), "\n")
		}
	}
	return n
}

// Shutdown ends every other process and writes out the disks.
func (a *agent) Shutdown(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.config == nil {
		return nil
	}
	if err := unix.Kill(-1, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end all processes: %w", err)
	}
	for end := time.Now().Add(killTime); countProcesses() > 0 && time.Now().Before(end); {
		time.Sleep(2 * time.Millisecond)
	}
	if err := a.root.close(); err != nil {
		report("agent: shutdown: %v", err) // the data is written; the file system will say it was not unmounted
	}
	return nil
}
