package fake

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/microvm"
)

// The states of a fake VMM. Created is a cold one that was never resumed.
const (
	created = "created"
	running = "running"
	paused  = "paused"
	ended   = "ended"
)

// proc is a fake VMM process with its guest. Its goroutines end with it.
type proc struct {
	cfg    Config
	spec   microvm.Spec
	handle microvm.Handle
	guest  *Guest
	life   context.Context // ends when the VMM is told to end
	stop   context.CancelFunc
	up     chan struct{}  // closed once the guest's agent answers
	done   chan struct{}  // closed once everything has ended
	work   sync.WaitGroup // the app and the served links; added to under mu, while not ended

	change sync.Mutex // serialises the calls that change the VM

	mu    sync.Mutex
	state string         // guarded by mu
	runs  chan struct{}  // guarded by mu; closed while the vCPUs run
	link  net.Conn       // guarded by mu; the guest's end of the open link
	links int            // guarded by mu
	exit  microvm.VMExit // guarded by mu
}

func newProc(cfg Config, spec microvm.Spec, g *Guest, pid int) *proc {
	life, stop := context.WithCancel(context.Background())
	p := &proc{
		cfg: cfg, spec: spec, guest: g, life: life, stop: stop, state: created,
		up: make(chan struct{}), done: make(chan struct{}), runs: make(chan struct{}),
		handle: microvm.Handle{
			Engine: "fake", ID: spec.ID, PID: pid, StartTime: uint64(pid), VCPUs: spec.VCPUs,
			MemoryMiB: spec.MemoryMiB, Drives: len(spec.Drives), NICs: len(spec.NICs), KernelSum: kernelSum(spec),
		},
	}
	if g.ram.Booted {
		p.state = paused
	}
	g.p = p
	go p.run()
	return p
}

// run is the process: it boots or wakes the guest at the first resume, and ends when told to.
func (p *proc) run() {
	defer close(p.done)
	if p.await(p.life) == nil && p.guest.boot(p.life, p.cfg.Latency.Boot) == nil {
		close(p.up)
	}
	<-p.life.Done()
	p.closeLink()
	p.work.Wait()
}

// await blocks while the vCPUs stand still.
func (p *proc) await(ctx context.Context) error {
	for ctx.Err() == nil {
		p.mu.Lock()
		runs := p.runs
		p.mu.Unlock()
		select {
		case <-runs:
			return ctx.Err()
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// end tells the process to end, and how; the first call decides.
func (p *proc) end(exit microvm.VMExit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == ended {
		return
	}
	p.state, p.exit = ended, exit
	p.stop()
}

func (p *proc) ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state == ended
}

func (p *proc) dieAfter(d time.Duration) {
	if d <= 0 {
		return
	}
	p.spawn(func() {
		if sleep(p.life, d) == nil {
			p.end(microvm.VMExit{Signal: 6, Log: "fake: died as told\n"})
		}
	})
}

// spawn runs fn as part of the process, unless that has ended.
func (p *proc) spawn(fn func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != ended {
		p.work.Go(fn)
	}
}

// set changes from running to paused or back. Both are idempotent.
func (p *proc) set(to string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.state == ended:
		return microvm.ErrGone
	case p.state == to || to == paused && p.state == created:
		return nil
	case to == running:
		close(p.runs)
	default:
		p.runs = make(chan struct{})
	}
	p.state = to
	return nil
}

// open makes a new link and ends the one before. Like a real one it may start with stale bytes.
func (p *proc) open() (net.Conn, error) {
	host, inside := net.Pipe()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == ended {
		return nil, microvm.ErrGone
	}
	if p.link != nil {
		p.link.Close() //nolint:errcheck // a pipe's Close cannot fail
	}
	p.link = inside
	p.links++
	stale := p.links > 1 || p.guest.ram.Links > 0
	p.work.Go(func() { p.serve(inside, stale) })
	return host, nil
}

// serve is the agent on one link.
func (p *proc) serve(link net.Conn, stale bool) {
	defer link.Close() //nolint:errcheck // a pipe's Close cannot fail
	if wait(p.life, p.up) != nil {
		return
	}
	g := &gated{Conn: link, p: p}
	if stale {
		if _, err := g.Write([]byte("\x00stale bytes of a session before\xff")); err != nil {
			return
		}
	}
	err := guest.Serve(p.life, g, agent{p.guest})
	if errors.Is(err, guest.ErrShutdown) {
		p.end(microvm.VMExit{})
	}
	p.cfg.Log.Debug("link ended", "machine", p.handle.ID, "err", err)
}

func (p *proc) closeLink() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link != nil {
		p.link.Close() //nolint:errcheck // a pipe's Close cannot fail
	}
}

// gated is the guest's end of a link: nothing passes while the vCPUs stand still.
type gated struct {
	net.Conn
	p *proc
}

func (g *gated) Read(b []byte) (int, error) {
	if err := g.p.await(g.p.life); err != nil {
		return 0, err
	}
	n, err := g.Conn.Read(b)
	if err := g.p.await(g.p.life); err != nil {
		return 0, err
	}
	return n, err
}

func (g *gated) Write(b []byte) (int, error) {
	if err := g.p.await(g.p.life); err != nil {
		return 0, err
	}
	return g.Conn.Write(b)
}
