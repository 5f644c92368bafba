package volanttest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest"
)

// crowd is a number of clients which come and go, and use their connections all the while.
type crowd struct {
	t    *testing.T
	p    *volanttest.Platform
	addr netip.AddrPort
	wg   sync.WaitGroup

	mu     sync.Mutex // guards those below
	rnd    *rand.Rand
	served int
	errs   []error
}

func (c *crowd) random(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rnd.IntN(n)
}

// come lets n clients connect within a second and stay for about a time.
func (c *crowd) come(n int, stay time.Duration) {
	for range n {
		wait := time.Duration(c.random(1000)) * time.Millisecond
		life := stay/4 + time.Duration(c.random(int(stay)))
		c.wg.Go(func() {
			time.Sleep(wait)
			err := c.client(life)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.served++
			if err != nil {
				c.errs = append(c.errs, err)
			}
		})
	}
}

func (c *crowd) client(life time.Duration) error {
	conn, err := c.p.Connect(c.addr)
	if err != nil {
		return fmt.Errorf("connect at %v: %w", time.Now().Format("04:05.000"), err)
	}
	for end := time.Now().Add(life); time.Now().Before(end); {
		if err := volanttest.Echo(conn); err != nil {
			return errors.Join(fmt.Errorf("lost at %v: %w", time.Now().Format("04:05.000"), err), conn.Close())
		}
		time.Sleep(time.Duration(500+c.random(1500)) * time.Millisecond)
	}
	return conn.Close()
}

// Load swings, machines come and go, and releases are replaced, every other one broken: no connection is
// closed by the platform, and no machine holds more than its hard limit.
func TestNoConnectionIsClosedWhileTheFleetSwings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		small := func(r *api.CreateRelease) {
			idle, most, waiting := volant.Duration(2*time.Second), 14, 1000 // all come from one address
			r.Config.Guest.MemoryMB = 128
			r.WaitTimeout = volant.Duration(20 * time.Second)
			r.Scale = &api.ScalePatch{IdleTimeout: &idle, Max: &most, MaxPerPeer: &waiting}
		}
		addr, _ := p.Deploy("web", volanttest.Image, small)
		c := &crowd{t: t, p: p, addr: addr, rnd: rand.New(rand.NewPCG(1, 2))}
		c.come(8, 3*time.Minute) // these see all of it
		for i := range 8 {
			c.come(30+c.random(130), 15*time.Second)
			time.Sleep(time.Duration(c.random(4)) * time.Second)
			if i%2 == 1 {
				image, want := volanttest.Image, "complete"
				if i%4 == 1 {
					image, want = volanttest.Broken, "failed"
				}
				if _, r := p.Deploy("web", image, small); r.Status != want {
					t.Errorf("release %d is %s (%s), want %s", r.Version, r.Status, r.Reason, want)
				}
			}
			time.Sleep(time.Duration(5+c.random(20)) * time.Second)
		}
		c.wg.Wait()
		for i, err := range c.errs {
			if i < 10 {
				t.Error(err)
			}
		}
		t.Logf("%d connections, %d errors, machines %v", c.served, len(c.errs), p.States("web"))
		for id, g := range p.Guests() {
			if _, most, _ := g.Counts(); most > 25 {
				t.Errorf("machine %s held %d connections at once, its hard limit is 25", id, most)
			}
		}
		time.Sleep(5 * time.Minute)
		ms, err := p.API.Machines(context.Background(), "web")
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range ms {
			if m.State != "suspended" && m.State != "destroyed" {
				t.Errorf("when all have left, machine %s is %s", m.ID, m.State)
			}
		}
	})
}

// The server is killed at some moment of a deploy and started again: the deploy comes to the end it would
// have come to, and the connections live.
func TestADeployGoesOnAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		addr, _ := p.Deploy("web", volanttest.Image)
		conns := connect(t, p, 21, func() (net.Conn, error) { return p.Connect(addr) })
		time.Sleep(5 * time.Second)
		for i := range 16 {
			image, want := volanttest.Image, "complete"
			if i%4 == 3 {
				image, want = volanttest.Broken, "failed"
			}
			r, err := p.API.CreateRelease(context.Background(), "web", api.CreateRelease{
				Image: string(image), WaitTimeout: volant.Duration(20 * time.Second), Config: volant.MachineConfig{
					Services: []volant.Service{{Protocol: "tcp", InternalPort: volanttest.Port, Ports: []volant.Port{{Port: 80}}}},
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(i) * 90 * time.Millisecond)
			p.Stop()
			time.Sleep(time.Second)
			p.Start()
			time.Sleep(2 * time.Minute)
			if r, err = p.API.Release(context.Background(), "web", r.Version); err != nil || r.Status != want {
				t.Errorf("cut after %d ms: release %d is %s (%s), %v, want %s", i*90, r.Version, r.Status, r.Reason, err, want)
			}
			c, err := p.Connect(addr)
			if err != nil {
				t.Fatalf("cut after %d ms: %v", i*90, err)
			}
			conns = append(conns, c)
		}
		for i, c := range conns {
			if err := volanttest.Echo(c); err != nil {
				t.Errorf("connection %d was lost: %v", i, err)
			}
			c.Close()
		}
		time.Sleep(5 * time.Minute)
		if got := p.States("web"); got["started"] != 0 || got["stopped"] != 0 || got["starting"] != 0 {
			t.Errorf("when all have left, machines are %v", got)
		}
	})
}
