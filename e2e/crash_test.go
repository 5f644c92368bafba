package e2e_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest/live"
	"github.com/volant-edge/volant/volanttest/testserver"
)

// Whatever is killed at whichever write-ahead point: connections that do not run through it go on, those that
// wait are served, the platform comes to rest, and all that is there fits the records.

func TestServerKilledAtEveryPoint(t *testing.T) { killAtEveryPoint(t, "server") }
func TestVMMKilledAtEveryPoint(t *testing.T)    { killAtEveryPoint(t, "vmm") }
func TestProxyKilledAtEveryPoint(t *testing.T)  { killAtEveryPoint(t, "proxy") }

// killAtEveryPoint takes the points from the binary; one that is not reached fails.
func killAtEveryPoint(t *testing.T, victim string) {
	t.Parallel()
	s := start(t)
	points, err := s.Points(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := newCrasher(t, s)
	for _, point := range points {
		for _, when := range []string{"before", "after"} {
			ok := t.Run(point+"/"+when, func(t *testing.T) {
				c.T = t
				c.cell(victim, point, when)
			})
			if !ok {
				t.FailNow() // what follows would fail by what this has left
			}
		}
	}
}

// crasher leads one app to write-ahead points while a connection to another is held.
type crasher struct {
	*testing.T // of the cell
	all        *testing.T
	s          *live.Server
	work       string // address of the app that is led
	other      string // of the one with the held connection
	held       *testserver.Echo
	cells      int
}

func newCrasher(t *testing.T, s *live.Server) *crasher {
	c := &crasher{T: t, all: t, s: s}
	c.other = deploy(t, s, "held", "testserver", 8080, "min = 0")
	c.work = deploy(t, s, "work", "testserver", 8080, "min = 0\nmax = 1\nidle_timeout = \"1h\"")
	c.hold()
	return c
}

// hold opens the held connection. It lives as long as the whole test.
func (c *crasher) hold() {
	conn := dial(c.all, c.other)
	c.must(conn.SetDeadline(time.Now().Add(15 * time.Minute))) // what hangs must fail
	var err error
	c.held, err = testserver.StartEcho(conn, 1)
	c.must(err)
	c.must(c.held.Exchange(1000)) // its machine serves before anything is killed
}

// drive leads the app to a point.
type drive struct {
	before func()       // nothing is armed yet
	act    func() error // may fail, since something is killed meanwhile
	after  func()
}

func (c *crasher) drives() map[string]drive {
	awake := func() { ask(c, c.work, "count") }
	asleep := func() { awake(); sleep(c, c.s, "work", "suspend") }
	stopped := func() { awake(); sleep(c, c.s, "work", "stop") }
	connect := func() error { return c.connect() }
	do := func(action string) func() error {
		return func() error { return c.s.API.MachineAction(c.Context(), "work", c.id(), action) }
	}
	destroy := func() error { return c.s.API.DestroyMachine(c.Context(), "work", c.id(), true) }
	restart := func() error { c.s.Stop(); return c.s.Run(c.Context()) }
	return map[string]drive{
		"wish": {before: awake, act: do("cordon"), after: func() {
			eventually(c, "the machine is uncordoned", func() bool { return do("uncordon")() == nil })
		}},
		"term": {before: func() { c.fresh(); c.must(restart()) }, act: connect},
		"drain": {before: awake, act: func() error { return c.idleTimeout(time.Second) }, after: func() {
			eventually(c, "the idle timeout is as it was", func() bool { return c.idleTimeout(time.Hour) == nil })
		}},
		"boot-begin":  {before: asleep, act: connect},
		"boot-made":   {before: stopped, act: connect},
		"boot-served": {before: stopped, act: connect},
		"boot-failed": {before: stopped, act: func() error {
			go func() { _ = connect() }() // it fails with the boots
			return c.killBoots()
		}},
		"exit": {before: func() { c.fresh(); awake() }, act: func() error {
			conn, err := net.Dial("tcp", c.work)
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = testserver.Ask(conn, "exit 3")
			return err
		}},
		"restart":        {before: awake, act: do("restart")},
		"suspend-begin":  {before: awake, act: do("suspend")},
		"suspend-taken":  {before: awake, act: do("suspend")},
		"suspend-undone": {before: awake, act: func() error { return c.wakeWhileItSleeps() }},
		"suspend-done":   {before: awake, act: do("suspend")},
		"discard":        {before: asleep, act: do("stop")},
		"stop-begin":     {before: awake, act: do("stop")},
		"stop-done":      {before: awake, act: do("stop")},
		"destroy-begin":  {before: stopped, act: destroy},
		"destroy-done":   {before: stopped, act: destroy},
		"template-begin": {before: c.noTemplates, act: func() error { return c.s.Run(c.Context()) }},
		"template-done":  {before: c.noTemplates, act: func() error { return c.s.Run(c.Context()) }},
	}
}

func (c *crasher) cell(victim, point, when string) {
	d, ok := c.drives()[point]
	if !ok {
		c.Fatalf("no test leads to the point %s", point)
	}
	if c.cells++; victim == "vmm" && c.cells%3 == 0 {
		c.fresh() // a machine that dies time and again is started later and later
	}
	if d.before != nil {
		d.before()
	}
	do := live.Hold
	if victim == "server" {
		do = live.Kill
	}
	c.must(c.s.Arm(point, when, do))
	acted := make(chan error, 1)
	go func() { acted <- d.act() }()
	eventually(c, "the point is reached", c.s.Reached)
	switch victim {
	case "server":
		<-c.s.Exited()
		c.must(c.held.Exchange(1000))
		c.must(c.s.Run(c.Context()))
	case "vmm":
		_, err := c.s.KillVMMs(c.id())
		c.must(err)
	case "proxy":
		c.must(c.s.KillProxy())
	}
	c.must(c.s.Release())
	if err := <-acted; err != nil {
		c.Logf("%s: %v", point, err)
	}
	if d.after != nil {
		d.after()
	}
	if victim == "proxy" { // for a moment nobody listens
		eventually(c, "a new proxy listens", func() bool {
			conn, err := net.Dial("tcp", c.other)
			return err == nil && conn.Close() == nil
		})
		c.hold()
	}
	c.must(c.held.Exchange(1000))
	ask(c, c.work, "count")
	sound(c, c.s)
}

func (c *crasher) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(c.s.WithLog(err))
	}
}

const noMachine = "00000000000000"

// id is the machine's; the app has one or none.
func (c *crasher) id() string {
	ms, err := c.s.API.Machines(c.Context(), "work")
	if err != nil || len(ms) == 0 {
		return noMachine
	}
	return ms[0].ID
}

// connect opens a connection and waits for an answer.
func (c *crasher) connect() error {
	conn, err := net.DialTimeout("tcp", c.work, 30*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	_, err = testserver.Ask(conn, "count")
	return err
}

// fresh leaves the app without a machine.
func (c *crasher) fresh() {
	for _, m := range machines(c, c.s, "work") {
		c.must(c.s.API.DestroyMachine(c.Context(), "work", m.ID, true))
	}
	eventually(c, "the machine is destroyed", func() bool { return len(machines(c, c.s, "work")) == 0 })
}

func (c *crasher) idleTimeout(d time.Duration) error {
	v := volant.Duration(d)
	_, err := c.s.API.SetScale(c.Context(), "work", api.ScalePatch{IdleTimeout: &v})
	return err
}

// noTemplates stops the server and takes its templates away, so that its next start makes one.
func (c *crasher) noTemplates() {
	c.s.Stop()
	files, err := filepath.Glob(filepath.Join(c.s.Data, "host", "templates", "*"))
	c.must(err)
	for _, f := range files {
		c.must(os.RemoveAll(f))
	}
}

// killBoots kills each VMM of the machine until the point is reached.
func (c *crasher) killBoots() error {
	for !c.s.Reached() {
		if _, err := c.s.KillVMMs(c.id()); err != nil {
			return err
		}
	}
	return nil
}

// wakeWhileItSleeps starts the machine while it is suspended, until the point is reached.
func (c *crasher) wakeWhileItSleeps() error {
	for id := c.id(); !c.s.Reached(); {
		if err := c.s.API.MachineAction(c.Context(), "work", id, "suspend"); err != nil {
			return err
		}
		if err := c.s.API.MachineAction(c.Context(), "work", id, "start"); err != nil {
			return err
		}
		if err := c.s.API.Wait(c.Context(), "work", id, "started", time.Minute); err != nil {
			return err
		}
	}
	return nil
}
