package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant/guest"
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	drainTime   = time.Second // for output that a process left in its pipes, or gave to its children
	maxPiece    = 8 << 10     // of a line without an end
	lineTime    = time.Second // after which a line without an end is shown
)

// forkExec starts a program as the agent itself is.
func forkExec(path string, argv, env []string, files []*os.File) (int, error) {
	fds := make([]uintptr, len(files))
	for i, f := range files {
		fds[i] = f.Fd()
	}
	return syscall.ForkExec(path, argv, &syscall.ProcAttr{Dir: "/", Env: env, Files: fds})
}

// command is a process to be started in the image's root.
type command struct {
	args   []string
	env    map[string]string
	user   string
	dir    string
	cgroup string
	stdin  *os.File
	stdout *os.File
	stderr *os.File
}

// start starts it. Its errors tell what is wrong with the image or the request.
func (c command) start() (*os.Process, error) {
	id, err := lookUser(c.user)
	if err != nil {
		return nil, err
	}
	env := maps.Clone(c.env)
	if env == nil {
		env = map[string]string{}
	}
	setDefault(env, "PATH", defaultPath)
	setDefault(env, "HOME", id.home)
	if c.dir == "" {
		c.dir = "/"
	}
	if err := workDir(c.dir, id); err != nil {
		return nil, err
	}
	if len(c.args) == 0 {
		return nil, guest.Errorf(guest.KindInvalid, "no command is given")
	}
	path, err := lookPath(c.args[0], env["PATH"], c.dir)
	if err != nil {
		return nil, err
	}
	group, err := os.Open(c.cgroup)
	if err != nil {
		return nil, err
	}
	defer func() { _ = group.Close() }()               // a directory
	for _, f := range []*os.File{c.stdout, c.stderr} { // so that the user can open /dev/stdout
		if err := f.Chown(int(id.uid), int(id.gid)); err != nil {
			return nil, err
		}
	}
	p, err := spawn(path, c, env, id, group)
	if err != nil {
		return nil, guest.Errorf(guest.KindInvalid, "start %s: %v", path, explain(err))
	}
	return p, nil
}

func setDefault(m map[string]string, k, v string) {
	if _, ok := m[k]; !ok {
		m[k] = v
	}
}

// workDir makes the working directory if the image has none.
func workDir(dir string, id identity) error {
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return guest.Errorf(guest.KindInvalid, "working directory: %v", err)
	}
	return os.Chown(dir, int(id.uid), int(id.gid))
}

// spawning is held from before a fork until after it, while the agent is as easy to kill for memory
// as its children shall be.
var spawning sync.Mutex

func spawn(path string, c command, env map[string]string, id identity, group *os.File) (*os.Process, error) {
	spawning.Lock()
	defer spawning.Unlock()
	oomScore("0")
	defer oomScore("-900")
	groups := id.groups
	if groups == nil {
		groups = []uint32{}
	}
	return os.StartProcess(path, c.args, &os.ProcAttr{
		Dir: c.dir, Env: environ(env), Files: []*os.File{c.stdin, c.stdout, c.stderr},
		Sys: &syscall.SysProcAttr{
			Setsid: true, UseCgroupFD: true, CgroupFD: int(group.Fd()),
			Credential: &syscall.Credential{Uid: id.uid, Gid: id.gid, Groups: groups},
		},
	})
}

func oomScore(v string) {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte(v), 0) // worse without, but no reason to fail
}

func environ(env map[string]string) []string {
	out := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, k+"="+env[k])
	}
	return out
}

// explain adds to the kernel's short words what they mean for an image.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOEXEC):
		return fmt.Errorf("%w: not a program for this CPU, or a script without its #! line", err)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: the program's interpreter or loader is not in the image", err)
	}
	return err
}

// exitOf translates how a process ended; a signal gives the code a shell would.
func exitOf(st *os.ProcessState) guest.Exit {
	ws, ok := st.Sys().(syscall.WaitStatus)
	if ok && ws.Signaled() {
		return guest.Exit{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}
	}
	return guest.Exit{Code: st.ExitCode()}
}

// app is one run of the app.
type app struct {
	proc *os.Process
	done chan struct{} // closed with exit set
	exit guest.Exit
}

// startApp starts the app; its output goes into the ring.
func startApp(c guest.Config, ring *guest.Ring) (*app, error) {
	cmd := command{args: c.Args, env: c.Env, user: c.User, dir: c.WorkDir, cgroup: appCgroup}
	var reads sync.WaitGroup
	var ends []*os.File
	defer func() {
		for _, f := range ends {
			_ = f.Close() // the child has its own
		}
	}()
	for _, o := range []struct {
		source string
		file   **os.File
	}{{"stdout", &cmd.stdout}, {"stderr", &cmd.stderr}} {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		*o.file, ends = w, append(ends, w)
		reads.Go(func() {
			copyLines(r, func(line string) { ring.Append(o.source, line) })
			_ = r.Close() // read to its end
		})
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		return nil, err
	}
	cmd.stdin, ends = null, append(ends, null)
	before := oomKills(appCgroup)
	p, err := cmd.start()
	if err != nil {
		return nil, err
	}
	a := &app{proc: p, done: make(chan struct{})}
	go a.wait(&reads, before, ring)
	return a, nil
}

// wait waits for the app's first process, then ends what it left behind.
func (a *app) wait(reads *sync.WaitGroup, oomBefore int, ring *guest.Ring) {
	st, err := a.proc.Wait()
	if err != nil {
		a.exit = guest.Exit{Code: 255}
		ring.Append("init", "wait for the app: "+err.Error())
	} else {
		a.exit = exitOf(st)
	}
	a.exit.OOM = a.exit.Code != 0 && oomKills(appCgroup) > oomBefore
	if err := killCgroup(appCgroup); err != nil {
		ring.Append("init", "end the app's processes: "+err.Error())
	}
	waitAtMost(reads, drainTime)
	ring.Append("init", "the app "+describe(a.exit))
	close(a.done)
}

func describe(e guest.Exit) string {
	how := fmt.Sprintf("exited with code %d", e.Code)
	if e.Signal != 0 {
		how = fmt.Sprintf("was ended by signal %d (%s)", e.Signal, unix.SignalName(syscall.Signal(e.Signal)))
	}
	if e.OOM {
		how += ": the machine has too little memory for it"
	}
	return how
}

func (a *app) running() bool {
	select {
	case <-a.done:
		return false
	default:
		return true
	}
}

// waitAtMost waits for wg, but not longer than d.
func waitAtMost(wg *sync.WaitGroup, d time.Duration) {
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(d):
	}
}

// copyLines calls fn for each line of r, and for pieces of lines that are long or stay open.
func copyLines(r *os.File, fn func(string)) {
	buf, have := make([]byte, 32<<10), []byte(nil)
	for {
		if len(have) > 0 {
			_ = r.SetReadDeadline(time.Now().Add(lineTime)) // without it a piece waits for its end
		} else {
			_ = r.SetReadDeadline(time.Time{})
		}
		n, err := r.Read(buf)
		have = append(have, buf[:n]...)
		for {
			line, rest, ok := bytes.Cut(have, []byte{'\n'})
			if !ok {
				break
			}
			fn(strings.TrimSuffix(string(line), "\r"))
			have = rest
		}
		if len(have) > 0 && (len(have) >= maxPiece || err != nil) {
			fn(string(have))
			have = nil
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		have = append([]byte(nil), have...)
	}
}

// runExec runs a command with the stdio of e until it ends, or ctx does.
func runExec(ctx context.Context, e guest.Exec, env map[string]string, user, dir string) (guest.Exit, error) {
	cmd := command{args: e.Args, env: maps.Clone(env), user: user, dir: dir, cgroup: execCgroup}
	if cmd.env == nil {
		cmd.env = map[string]string{}
	}
	maps.Copy(cmd.env, e.Env)
	var mine, theirs []*os.File
	closeAll := func(fs []*os.File) {
		for _, f := range fs {
			_ = f.Close() // some twice, and none holds data
		}
	}
	defer func() { closeAll(mine) }()
	defer func() { closeAll(theirs) }()
	for i, f := range []**os.File{&cmd.stdin, &cmd.stdout, &cmd.stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return guest.Exit{}, err
		}
		if i == 0 {
			r, w = w, r
		}
		*f, mine, theirs = w, append(mine, r), append(theirs, w)
	}
	p, err := cmd.start()
	if err != nil {
		return guest.Exit{}, err
	}
	closeAll(theirs)
	stop := context.AfterFunc(ctx, func() { _ = unix.Kill(-p.Pid, unix.SIGKILL) }) // may be gone already
	defer stop()
	go func() {
		_, _ = io.Copy(mine[0], e.Stdin) // a program need not read its input
		_ = mine[0].Close()
	}()
	var outs sync.WaitGroup
	outs.Go(func() { _, _ = io.Copy(e.Stdout, mine[1]) }) // fails with the session, and then ctx has ended
	outs.Go(func() { _, _ = io.Copy(e.Stderr, mine[2]) })
	st, err := p.Wait()
	if err != nil {
		return guest.Exit{}, err
	}
	waitAtMost(&outs, drainTime)
	closeAll(mine)
	outs.Wait()
	return exitOf(st), nil
}
