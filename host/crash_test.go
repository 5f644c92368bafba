package host_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/microvm/fake"
)

// crasher ends the host at one point, once, and counts all that are passed.
type crasher struct {
	mu      sync.Mutex
	at      string // point:when
	kill    string // host, vmm, both
	world   *fake.World
	fuse    *fuse
	crashed bool
	passed  map[string]int
}

func (c *crasher) hook(p, when string) {
	c.mu.Lock()
	f := c.fuse
	c.mu.Unlock()
	f.check()
	c.mu.Lock()
	name := p + ":" + when
	c.passed[name]++
	hit := name == c.at && !c.crashed
	c.crashed = c.crashed || hit
	c.mu.Unlock()
	if !hit {
		return
	}
	if c.kill != "host" {
		for _, id := range c.world.Running() {
			c.world.Die(id, microvm.VMExit{Signal: 9})
		}
	}
	if c.kill != "vmm" {
		f.blow()
		runtime.Goexit()
	}
}

func (c *crasher) renew() *fuse {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fuse = &fuse{}
	return c.fuse
}

func (c *crasher) blown() bool {
	c.mu.Lock()
	f := c.fuse
	c.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.blown
}

// life leads machines through all that can happen to them. Each stage may be begun anew after a crash.
type life struct {
	*rig
	c      *crasher
	wishes []volant.Machine
	term   uint64
	exits  chan int // what the app in the guest does
}

func (l *life) boot() {
	l.Host = nil
	f := l.c.renew()
	cfg := l.cfg
	l.epoch++
	cfg.Epoch, cfg.Crash = l.epoch, l.c.hook
	h, err := host.New(cfg, f.wrap(l.deps()))
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.Host, l.cancel, l.done = h, cancel, make(chan error, 1)
	go func() {
		err := errors.New("crashed")
		defer func() { l.done <- err }()
		err = h.Run(ctx)
	}()
	synctest.Wait()
}

// again starts the host anew if it crashed, and says whether it did.
func (l *life) again() bool {
	synctest.Wait()
	if !l.c.blown() {
		return false
	}
	l.cancel()
	<-l.done
	synctest.Wait()
	served := map[volant.MachineID]*fake.Guest{}
	for _, v := range l.Haves() {
		if v.State == volant.StateStarted {
			served[v.Machine] = l.world.Guest(string(v.Machine))
		}
	}
	l.boot()
	if l.c.kill != "host" {
		return true
	}
	time.Sleep(time.Second)
	for id, g := range served {
		if l.have(id).State == volant.StateStarted && l.world.Guest(string(id)) != g {
			l.t.Errorf("machine %s served and was booted anew", id)
		}
	}
	return true
}

// stage does something until it has come true, over crashes.
func (l *life) stage(name string, do func(ctx context.Context), reached func() bool) {
	l.t.Helper()
	for range 4 {
		l.call(func(context.Context) { _ = l.Host.SetWishes(l.wishes) }) // a crash on the way is the point
		if l.again() {
			continue
		}
		l.call(do)
		for range 3000 {
			if l.again() {
				break
			}
			if reached() {
				l.sound(name)
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	l.t.Fatalf("stage %s is not reached: %+v", name, l.Haves())
}

// call runs a call into the host, which may never return if the host crashes.
func (l *life) call(do func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); do(ctx) }()
	for {
		select {
		case <-done:
			cancel()
			return
		case <-time.After(10 * time.Millisecond):
			if l.c.blown() {
				cancel()
				<-done
				return
			}
		}
	}
}

// sound checks what must hold whenever a stage is done.
func (l *life) sound(stage string) {
	l.t.Helper()
	time.Sleep(3 * time.Second) // let what goes on in the background end
	if l.again() {
		l.call(func(context.Context) { _ = l.Host.SetWishes(l.wishes) }) // a crash on the way is the point
		time.Sleep(3 * time.Second)
	}
	synctest.Wait()
	var up, known []string
	for _, v := range l.Haves() {
		if v.State == volant.StateDestroyed {
			continue
		}
		known = append(known, string(v.Machine))
		if v.State == volant.StateStarted {
			up = append(up, string(v.Machine))
		}
		if (v.Memory > 0) != (v.State == volant.StateStarted) {
			l.t.Errorf("%s: machine %s is %s and holds %d MB", stage, v.Machine, v.State, v.Memory)
		}
	}
	if got := l.world.Kept(); !slices.Equal(got, up) {
		l.t.Errorf("%s: VMs %v, want %v", stage, got, up)
	}
	for _, id := range l.links.all() {
		if !slices.Contains(known, string(id)) {
			l.t.Errorf("%s: link of %s is left", stage, id)
		}
	}
	l.groups.mu.Lock()
	for id := range l.groups.m {
		if !slices.Contains(up, string(id)) {
			l.t.Errorf("%s: cgroup of %s is left", stage, id)
		}
	}
	l.groups.mu.Unlock()
	l.files(stage, known)
	if len(l.proxy.broken) > 0 {
		l.t.Errorf("%s: %v", stage, l.proxy.broken)
		l.proxy.broken = nil
	}
}

// files checks that each file belongs to a machine that is known.
func (l *life) files(stage string, known []string) {
	l.t.Helper()
	suspended := 0
	for _, v := range l.Haves() {
		if v.State == volant.StateSuspended {
			suspended++
		}
	}
	for dir, want := range map[string]func(name string) bool{
		"scratch": func(n string) bool { return slices.Contains(known, strings.TrimSuffix(n, ".img")) },
		"logs":    func(n string) bool { return slices.Contains(known, n) },
	} {
		for _, e := range entries(l.t, filepath.Join(l.dir, dir)) {
			if !want(e) {
				l.t.Errorf("%s: %s/%s is left", stage, dir, e)
			}
		}
	}
	if got := len(entries(l.t, filepath.Join(l.dir, "snapshots"))); got != suspended {
		l.t.Errorf("%s: %d snapshots on disk, %d machines suspended", stage, got, suspended)
	}
	if got := l.templates(); got != 2 && (got != 0 || l.c.kill == "host") {
		l.t.Errorf("%s: %d files of templates, want a directory and its record", stage, got)
	}
}

// templates counts the files of templates: a directory and its record for each.
func (l *life) templates() int { return len(entries(l.t, filepath.Join(l.dir, "templates"))) }

func entries(t *testing.T, dir string) []string {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

func (l *life) is(id volant.MachineID, s volant.State) func() bool {
	return func() bool { return l.have(id).State == s }
}

// asleep is suspended, or stopped where the VM was killed.
func (l *life) asleep(id volant.MachineID) func() bool {
	return func() bool {
		s := l.have(id).State
		return s == volant.StateSuspended || l.c.kill != "host" && s == volant.StateStopped
	}
}

func (l *life) drainAndSleep(id volant.MachineID) func(ctx context.Context) {
	return func(ctx context.Context) {
		if l.have(id).State == volant.StateStarted {
			l.term++
			l.Drain(ctx, id, host.Drain{On: true, Then: host.AskSuspend, Term: l.term}) //nolint:errcheck // it may crash
			l.SetSlots(id, 0)
		}
	}
}

// run is the whole life.
func (l *life) run() {
	a, b := machine(1), machine(2)
	ida, idb := idOf(a), idOf(b)
	woken := func(id volant.MachineID) func(ctx context.Context) {
		return func(ctx context.Context) { l.Wake(ctx, id, "test") } //nolint:errcheck // it may crash
	}
	l.boot()
	l.wishes = []volant.Machine{a}
	l.stage("created", func(context.Context) {}, func() bool {
		return l.have(ida).State == volant.StateCreated && (l.templates() == 2 || l.c.kill != "host" && l.templates() == 0)
	})
	l.stage("started", woken(ida), l.is(ida, volant.StateStarted))
	l.stage("suspended", l.drainAndSleep(ida), l.asleep(ida))
	l.stage("restored", woken(ida), l.is(ida, volant.StateStarted))
	l.stage("woken while it falls asleep", func(ctx context.Context) {
		go l.Sleep(ctx, ida, host.Sleep{How: host.AskSuspend}) //nolint:errcheck // it may crash
		time.Sleep(5 * time.Millisecond)
		l.Wake(ctx, ida, "test") //nolint:errcheck // it may crash
	}, l.is(ida, volant.StateStarted))
	l.stage("exited and restarted in place", func(context.Context) { l.exits <- 1 }, func() bool {
		v := l.have(ida)
		return v.Exit != nil && v.Exit.Code == 1 && v.State == volant.StateStarted
	})
	l.stage("asleep before an update", l.drainAndSleep(ida), l.asleep(ida))
	a = changed(a, func(m *volant.Machine) { m.Version = "v2" })
	l.wishes = []volant.Machine{a}
	l.stage("updated", func(context.Context) {}, l.is(ida, volant.StateStopped))
	l.wishes = []volant.Machine{a, b}
	l.disks.fail(errors.New("no such image"))
	l.stage("a boot fails", woken(idb), func() bool { return l.have(idb).Failures > 0 || l.c.blown() })
	l.disks.fail(nil)
	l.stage("and then works", woken(idb), l.is(idb, volant.StateStarted))
	l.stage("stopped", func(ctx context.Context) {
		l.Sleep(ctx, idb, host.Sleep{How: host.AskStop, Force: true}) //nolint:errcheck // it may crash
	}, l.is(idb, volant.StateStopped))
	l.stage("woken again", woken(ida), l.is(ida, volant.StateStarted))
	gone := func(m *volant.Machine) { m.Run, m.Tombstone = volant.RunDestroyed, true }
	l.wishes = []volant.Machine{changed(a, gone), changed(b, gone)}
	l.stage("destroyed", func(context.Context) {}, func() bool {
		return l.have(ida).State == volant.StateDestroyed && l.have(idb).State == volant.StateDestroyed
	})
	if got := entries(l.t, filepath.Join(l.dir, "journal", "machines")); len(got) != 0 {
		l.t.Errorf("records of destroyed machines: %v", got)
	}
}

// live runs the life in a bubble, with a crash at one point, and returns the points that were passed.
func live(t *testing.T, at, kill string) map[string]int {
	t.Helper()
	c := &crasher{at: at, kill: kill, passed: map[string]int{}}
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		l := &life{rig: r, c: c, exits: make(chan int, 8)}
		c.world = r.world
		r.fakes.App = func(ctx context.Context, _ *fake.Guest) guest.Exit {
			select {
			case code := <-l.exits:
				return guest.Exit{Code: code}
			case <-ctx.Done():
				return guest.Exit{}
			}
		}
		defer r.world.Close()
		defer func() {
			if l.cancel != nil {
				l.cancel()
			}
		}()
		l.run()
		l.stop()
	})
	if at != "" && !c.crashed {
		t.Errorf("%s was never reached", at)
	}
	return c.passed
}

func TestCrashAtEachPoint(t *testing.T) {
	passed := live(t, "", "host")
	for _, p := range host.Points() {
		for _, when := range []string{host.Before, host.After} {
			at := p + ":" + when
			if passed[at] == 0 {
				t.Errorf("%s is never reached", at)
				continue
			}
			for _, kill := range []string{"host", "vmm", "both"} {
				t.Run(at+":"+kill, func(t *testing.T) {
					t.Parallel()
					live(t, at, kill)
				})
			}
		}
	}
}
