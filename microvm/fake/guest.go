package fake

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/microvm"
)

// memSize is the size of a fake memory file.
const memSize = 4096

// maxState bounds a state file, which is JSON, and maxLines and logBytes the log in it.
const (
	maxState = 4 << 20
	maxLines = 10_000
	logBytes = 256 << 10
)

// App is the program in a guest. It runs from Start, or from the first Resume after a restore, until
// it returns or its ctx ends: by a signal, or with the VMM.
type App func(ctx context.Context, g *Guest) guest.Exit

// ram is what a snapshot brings back.
type ram struct {
	Booted     bool                  `json:"booted"`
	BootID     string                `json:"boot_id"`
	Configured bool                  `json:"configured"`
	Config     guest.Config          `json:"config"`
	Files      map[string]guest.File `json:"files,omitempty"`
	Running    bool                  `json:"running"`
	Exit       *guest.Exit           `json:"exit,omitempty"`
	Values     map[string]int64      `json:"values"`
	Links      int                   `json:"links"`
	Thaws      int                   `json:"thaws"`
	Clock      time.Time             `json:"clock"` // of the guest, when the snapshot was taken
	Logs       []guest.LogLine       `json:"logs"`
}

// Guest is the inside of a fake VM. An App keeps in it what should survive a snapshot.
type Guest struct {
	p        *proc
	logs     *guest.Ring
	restored bool

	mu      sync.Mutex
	ram     ram                // guarded by mu
	behind  time.Duration      // guarded by mu; how far the guest's clock is behind
	entropy []byte             // guarded by mu; the last the guest was given
	signal  int                // guarded by mu; the last the app was sent
	cancel  context.CancelFunc // guarded by mu; of the running app
	exited  chan struct{}      // guarded by mu; closed when the app has exited
}

func newGuest() *Guest {
	b := make([]byte, 16)
	rand.Read(b) // never fails since Go 1.24
	g := &Guest{logs: guest.NewRing(logBytes), exited: make(chan struct{})}
	g.ram = ram{BootID: hex.EncodeToString(b), Values: map[string]int64{}}
	return g
}

// readGuest returns the guest of a snapshot. Its clock stands where it stood.
func readGuest(dir string) (*Guest, error) {
	f, err := os.Open(filepath.Join(dir, microvm.StateFile))
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	g := newGuest()
	if err := json.NewDecoder(io.LimitReader(f, maxState)).Decode(&g.ram); err != nil {
		return nil, fmt.Errorf("%w: %w", microvm.ErrIncompatible, err)
	}
	if g.ram.Values == nil {
		g.ram.Values = map[string]int64{}
	}
	g.restored = true
	for _, l := range g.ram.Logs {
		g.logs.Append(l.Source, l.Text)
	}
	return g, nil
}

// write makes the state and the memory file of a snapshot.
func (g *Guest) write(dir string) (stateSum string, size int64, err error) {
	g.mu.Lock()
	g.ram.Clock = time.Now().Add(-g.behind)
	g.ram.Logs, _ = g.logs.After(1, maxLines)
	b, err := json.Marshal(g.ram)
	g.mu.Unlock()
	if err != nil {
		return "", 0, err
	}
	state := filepath.Join(dir, microvm.StateFile)
	if err := os.WriteFile(state, b, 0o600); err != nil {
		return "", 0, err
	}
	if err := os.WriteFile(filepath.Join(dir, microvm.MemoryFile), make([]byte, memSize), 0o600); err != nil {
		return "", 0, err
	}
	stateSum, err = microvm.SumFile(state)
	return stateSum, memSize, err
}

// boot brings the agent up at the first resume, and an app that ran in the snapshot.
func (g *Guest) boot(ctx context.Context, took time.Duration) error {
	if !g.restored {
		if err := sleep(ctx, took); err != nil {
			return err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.restored {
		g.behind = time.Since(g.ram.Clock)
	}
	g.ram.Booted = true
	if g.ram.Running {
		g.startLocked()
	} else if g.ram.Exit != nil {
		close(g.exited)
	}
	return nil
}

func (g *Guest) startLocked() {
	ctx, cancel := context.WithCancel(g.p.life)
	g.cancel = cancel
	g.p.spawn(func() {
		defer cancel()
		exit := g.p.cfg.App(ctx, g)
		if g.p.life.Err() != nil {
			return // killed with the VMM: nobody is left to be told
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.signal == int(syscall.SIGKILL) {
			exit = guest.Exit{Code: 137, Signal: g.signal}
		}
		g.ram.Running, g.ram.Exit = false, &exit
		close(g.exited)
	})
}

// Config is what the guest was configured with.
func (g *Guest) Config() guest.Config {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ram.Config
}

// VM is the ID of the guest's VM.
func (g *Guest) VM() string { return g.p.handle.ID }

// Restored says whether the guest comes from a snapshot: its app goes on rather than starts.
func (g *Guest) Restored() bool { return g.restored }

// Add adds n to a value in the guest's RAM and returns the sum.
func (g *Guest) Add(name string, n int64) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ram.Values[name] += n
	return g.ram.Values[name]
}

// Now is the guest's clock: behind after a restore, until Thaw.
func (g *Guest) Now() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Now().Add(-g.behind)
}

// Thaws is how often this boot of the guest was thawed.
func (g *Guest) Thaws() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ram.Thaws
}

// Entropy is the last the guest was given.
func (g *Guest) Entropy() []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.entropy
}

// Files are what was put into the guest.
func (g *Guest) Files() map[string]guest.File {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.ram.Files)
}

// Log writes a line to the app's log.
func (g *Guest) Log(source, text string) { g.logs.Append(source, text) }

// Await blocks while the VM is paused. An app that must stand still with it calls it between steps.
func (g *Guest) Await(ctx context.Context) error { return g.p.await(ctx) }

// agent answers the host for a guest. It is the guest.Backend.
type agent struct{ *Guest }

func (a agent) Hello() guest.Hello {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ram.Links++
	return guest.Hello{
		Version: guest.Version, BootID: a.ram.BootID, Configured: a.ram.Configured,
		Running: a.ram.Running, Exit: a.ram.Exit,
	}
}

func (a agent) Configure(_ context.Context, c guest.Config) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ram.Configured {
		return errors.New("configured already")
	}
	a.ram.Configured, a.ram.Config, a.entropy = true, c, c.Entropy
	a.behind = time.Since(c.Now)
	return nil
}

func (a agent) Put(_ context.Context, f guest.File) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ram.Configured {
		return errors.New("not configured")
	}
	if a.ram.Files == nil {
		a.ram.Files = map[string]guest.File{}
	}
	a.ram.Files[f.Path] = f
	return nil
}

// Start starts the app: first, or again after it ended.
func (a agent) Start(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ram.Configured {
		return errors.New("not configured")
	}
	if a.ram.Running {
		return errors.New("started already")
	}
	if a.ram.Exit != nil {
		a.ram.Exit, a.signal, a.exited = nil, 0, make(chan struct{})
	}
	a.ram.Running = true
	a.startLocked()
	return nil
}

func (a agent) Wait(ctx context.Context) (guest.Exit, error) {
	a.mu.Lock()
	exited := a.exited
	a.mu.Unlock()
	if err := wait(ctx, exited); err != nil {
		return guest.Exit{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return *a.ram.Exit, nil
}

// Signalled is the last signal that the app was sent since it started, or 0.
func (g *Guest) Signalled() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.signal
}

// Signal ends the app's ctx for the signals that end programs.
func (a agent) Signal(_ context.Context, sig int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ram.Running {
		return errors.New("the app does not run")
	}
	a.signal = sig
	switch syscall.Signal(sig) {
	case syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL:
		a.cancel()
	default:
	}
	return nil
}

func (a agent) Exec(ctx context.Context, x guest.Exec) (guest.Exit, error) {
	return a.p.cfg.Exec(ctx, a.Guest, x)
}

func (a agent) Logs(ctx context.Context, from uint64, fn func(guest.LogLine) error) error {
	return a.logs.Follow(ctx, from, fn)
}

func (a agent) Thaw(_ context.Context, t guest.Thaw) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.behind, a.entropy = time.Since(t.Now), t.Entropy
	a.ram.Thaws++
	return nil
}

func (a agent) Freeze(ctx context.Context) error { return ctx.Err() }

func (a agent) Stats(context.Context) (guest.Stats, error) {
	total := uint64(a.p.spec.MemoryMiB) << 10
	return guest.Stats{Memory: guest.Counters{"mem_total": total << 10, "mem_available": total << 9}, Processes: 2}, nil
}

func (a agent) Processes(context.Context) ([]guest.Process, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ram.Running {
		return nil, nil
	}
	return []guest.Process{
		{PID: 300, Command: "app", Dir: "/", Started: time.Now(), CPU: 20, RSS: 2 << 20, Listens: []guest.Listen{{Proto: "tcp", Address: "0.0.0.0:8080"}}},
		{PID: 301, Command: "helper", Dir: "/", Started: time.Now(), CPU: 10, RSS: 4 << 20},
	}, nil
}

// Shutdown ends the app; the VMM ends when Serve has sent the answer.
func (a agent) Shutdown(context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cancel != nil {
		if a.ram.Running {
			a.signal = int(syscall.SIGKILL)
		}
		a.cancel()
	}
	return nil
}
