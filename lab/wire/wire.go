// Package wire is the cables between a lab's regions: two TAP devices in two network namespaces, joined by a process
// that forwards their frames late, not at all, or as they come.
//
//	namespace A [tap] ── read ── cut? lost? ── wait until due ── write ── [tap] namespace B
//
// One process holds all cables of a lab. What they are to be stands in one file; whoever changes the file asks over
// the process's socket that it be applied, and hears how the cables are.
//
// # Invariants
//
//   - Frames keep their order in each direction.
//   - What waits in a cable is bounded in bytes; what is beyond is dropped, as by a full switch.
//   - Frames carry the kernel's segmentation header (IFF_VNET_HDR), so that one of 64 KiB passes whole. On a cable
//     that loses, the kernel cuts them up before, so that packets are lost and not whole bursts.
//
// # Sources
//
// The kernel's Documentation/networking/tuntap.rst; struct virtio_net_hdr of linux/virtio_net.h.
//
// # Not here
//
// Names, addresses and routes: package lab.
package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// End is where a cable is plugged in. The process makes the interface; it is gone when the process is.
type End struct {
	Namespace string `json:"namespace"` // as in /run/netns
	Interface string `json:"interface"`
}

// Spec is what a cable is to be.
type Spec struct {
	Name  string        `json:"name"`
	A     End           `json:"a"`
	B     End           `json:"b"`
	Delay time.Duration `json:"delay"` // one way
	Loss  float64       `json:"loss"`  // 0 to 1, of the packets of each direction
	Cut   bool          `json:"cut"`
}

// Report is how a cable is.
type Report struct {
	Spec
	Passed  uint64 `json:"passed"`  // frames, both ways
	Dropped uint64 `json:"dropped"` // by a cut, by loss, or for want of room
}

// maxFile bounds the file of specs and an answer.
const maxFile = 1 << 20

// ReadFile reads what the cables are to be.
func ReadFile(path string) ([]Spec, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s has %d bytes", path, len(b))
	}
	var specs []Spec
	if err := json.Unmarshal(b, &specs); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return specs, nil
}

// Process holds cables.
type Process struct {
	File   string       // what they are to be
	Socket string       // where Apply asks
	Log    *slog.Logger // nil discards

	mu     sync.Mutex // guards cables
	cables map[string]*cable
	broken chan error
}

// Run holds the cables that the file names until ctx ends. The file is read at the start and at each Apply.
func (p *Process) Run(ctx context.Context) error {
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	p.cables, p.broken = map[string]*cable{}, make(chan error, 1)
	defer p.close()
	if _, err := p.apply(); err != nil {
		return err
	}
	l, err := listen(p.Socket)
	if err != nil {
		return err
	}
	defer os.Remove(p.Socket) //nolint:errcheck // the next process removes it too
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close() //nolint:errcheck // nobody is left to tell
	served := make(chan error, 1)
	go func() { served <- p.serve(l) }()
	p.Log.Info("wires are up", "count", len(p.cables))
	select {
	case <-ctx.Done():
		return nil
	case err := <-served:
		if ctx.Err() != nil {
			return nil
		}
		return err
	case err := <-p.broken:
		return err
	}
}

// apply makes the cables what the file says and reports how they are.
func (p *Process) apply() ([]Report, error) {
	specs, err := ReadFile(p.File)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Report, 0, len(specs))
	for _, s := range specs {
		c := p.cables[s.Name]
		if c == nil {
			if c, err = open(s, p.lost); err != nil {
				return nil, fmt.Errorf("wire %s: %w", s.Name, err)
			}
			p.cables[s.Name] = c
		}
		if err := c.set(s); err != nil {
			return nil, fmt.Errorf("wire %s: %w", s.Name, err)
		}
		out = append(out, c.report())
	}
	return out, nil
}

// lost takes the first error of a cable, which ends the process: half a lab is worse than none.
func (p *Process) lost(err error) {
	select {
	case p.broken <- err:
	default:
	}
}

func (p *Process) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.cables {
		c.close()
	}
}

// setting is what a cable's lanes look at for each frame.
type setting struct {
	delay time.Duration
	loss  float64
	cut   bool
}

type cable struct {
	spec  Spec
	a, b  *os.File
	lanes [2]*lane
	now   atomic.Pointer[setting]
	ended sync.WaitGroup
}

func open(s Spec, lost func(error)) (*cable, error) {
	a, err := openTap(s.A)
	if err != nil {
		return nil, err
	}
	b, err := openTap(s.B)
	if err != nil {
		return nil, errors.Join(err, a.Close())
	}
	c := &cable{spec: s, a: a, b: b}
	c.now.Store(&setting{cut: true}) // until it is set
	for i, fs := range [2][2]*os.File{{a, b}, {b, a}} {
		l, err := newLane(fs[0], fs[1], &c.now)
		if err != nil {
			c.close()
			return nil, err
		}
		c.lanes[i] = l
	}
	for _, l := range c.lanes {
		c.ended.Go(func() {
			if err := l.read(); err != nil && !errors.Is(err, os.ErrClosed) {
				lost(fmt.Errorf("wire %s: %w", s.Name, err))
			}
		})
		c.ended.Go(l.write)
	}
	return c, nil
}

func (c *cable) set(s Spec) error {
	if whole := s.Loss == 0; c.now.Load().loss != s.Loss || c.spec.Loss != s.Loss {
		for _, f := range []*os.File{c.a, c.b} {
			if err := offload(f, whole); err != nil {
				return err
			}
		}
	}
	c.spec.Delay, c.spec.Loss, c.spec.Cut = s.Delay, s.Loss, s.Cut
	c.now.Store(&setting{delay: s.Delay, loss: s.Loss, cut: s.Cut})
	return nil
}

func (c *cable) report() Report {
	r := Report{Spec: c.spec}
	for _, l := range c.lanes {
		r.Passed += l.passed.Load()
		r.Dropped += l.dropped.Load()
	}
	return r
}

func (c *cable) close() {
	c.a.Close() //nolint:errcheck // ends the lanes
	c.b.Close() //nolint:errcheck // likewise
	for _, l := range c.lanes {
		if l != nil {
			l.close()
		}
	}
	c.ended.Wait()
}
