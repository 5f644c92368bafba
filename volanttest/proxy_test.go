package volanttest_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/volant-edge/volant/volanttest"
)

// A proxy that is killed takes its connections with it. What it last said of slots must not keep an old
// release's machine, drained by a deploy, awake for good.
func TestMachinesDrainedByADeployEndThoughTheProxyIsKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		addr, _ := p.Deploy("web", volanttest.Image)
		c, err := p.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, r := p.Deploy("web", volanttest.Image); r.Status != "complete" {
			t.Fatalf("second release is %s (%s), want complete", r.Status, r.Reason)
		}
		if err := volanttest.Echo(c); err != nil {
			t.Fatalf("the connection from before the deploy: %v", err)
		}
		p.KillProxy()
		time.Sleep(time.Minute)
		for _, m := range p.Machines("web") {
			if m.Release != 2 {
				t.Errorf("machine %s of release %d is %s a minute after its last connection ended, want it destroyed", m.ID, m.Release, m.State)
			}
		}
		c2, err := p.Connect(addr)
		if err != nil {
			t.Fatalf("through the new proxy: %v", err)
		}
		c2.Close()
	})
}
