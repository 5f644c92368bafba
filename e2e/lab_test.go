package e2e_test

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/lab"
	"github.com/volant-edge/volant/volanttest/need"
	"github.com/volant-edge/volant/volanttest/planet"
	"github.com/volant-edge/volant/volanttest/testserver"
)

// labApp is the port of the apps in labs, outside and in their machines.
const labApp = 8080

// inLab builds a planet for one test. At the test's end nothing of it may be left.
func inLab(t *testing.T, c lab.Config) *planet.Planet {
	t.Helper()
	if testing.Short() {
		t.Skip("labs are left out of -short")
	}
	need.Lab(t)
	built(t, "images", "testserver.tar")
	build := strings.TrimSuffix(built(t, "volant"), "/volant")
	c.Name, c.Engine = "e2e", "fake"
	p, err := planet.Up(t.Context(), build, c)
	if p != nil {
		t.Cleanup(func() {
			if t.Failed() {
				t.Log(p.Logs())
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// labDeploy brings the test server into service in a lab.
func labDeploy(t *testing.T, p *planet.Planet, app, scale string) netip.AddrPort {
	t.Helper()
	ip, err := p.Deploy(t.Context(), app, archive(t, "testserver"), config(app, labApp, scale))
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(ip, labApp)
}

// whereFrom asks as a client which machine answers: region/node/machine.
func whereFrom(ctx context.Context, p *planet.Planet, region string, i int, addr netip.AddrPort, within time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	c, err := p.ClientDial(ctx, region, i, addr.String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return "", err
	}
	return testserver.Ask(c, "hostname")
}

func answersFrom(t *testing.T, p *planet.Planet, region string, i int, addr netip.AddrPort) string {
	t.Helper()
	where, err := whereFrom(t.Context(), p, region, i, addr, time.Minute)
	if err != nil {
		t.Fatalf("client %d of %s: %v", i, region, err)
	}
	return where
}

func edgeAndHosts() map[string][]string {
	return map[string][]string{"dfw-1": {volant.RoleEdge, volant.RoleControl}}
}

// TestLabFarAway has a connection that enters in Dallas served in Chicago, and nothing but WireGuard on the wire between
// their servers.
func TestLabFarAway(t *testing.T) {
	p := inLab(t, lab.Config{Regions: []string{"dfw", "ord"}, Roles: edgeAndHosts()})
	rules := exec.Command("ip", "netns", "exec", "vlab-e2e-dfw-r", "nft", "-f", "-")
	rules.Stdin = strings.NewReader(`table ip watch {
	chain forward {
		type filter hook forward priority 0; policy accept;
		ip saddr 10.1.0.0/16 ip daddr 10.2.0.0/16 udp dport 4281 counter accept
		ip saddr 10.1.0.0/16 ip daddr 10.2.0.0/16 counter drop
		ip saddr 10.2.0.0/16 ip daddr 10.1.0.0/16 meta l4proto != udp counter drop
	}
}`)
	if out, err := rules.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	addr := labDeploy(t, p, "far", "min = 0")
	if got := answersFrom(t, p, "dfw", 3, addr); !strings.HasPrefix(got, "ord/ord-1/") {
		t.Errorf("served by %q, want a machine of ord-1", got)
	}
	six := netip.AddrPort{}
	a, err := p.API.App(t.Context(), "far")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range a.Addresses {
		if ip, err := netip.ParseAddr(s); err == nil && ip.Is6() {
			six = netip.AddrPortFrom(ip, labApp)
		}
	}
	if got := answersFrom(t, p, "dfw", 4, six); !strings.HasPrefix(got, "ord/ord-1/") {
		t.Errorf("by IPv6: served by %q, want a machine of ord-1", got)
	}
	if got := answersFrom(t, p, "ord", 5, addr); !strings.HasPrefix(got, "ord/ord-1/") {
		t.Errorf("served by %q, want a machine of ord-1", got)
	}
}

// TestLabBurst has 200 clients come within a second to an app that has one machine.
func TestLabBurst(t *testing.T) {
	p := inLab(t, lab.Config{Regions: []string{"dfw", "ord", "ams"}})
	addr := labDeploy(t, p, "burst", "min = 1\nmax = 20")
	vs := p.Visits(t.Context(), "dfw", addr, 200, 200, true, 30*time.Second)
	for _, v := range vs {
		if v.Err != nil {
			t.Errorf("a connection after %s: %v", v.At, v.Err)
		}
	}
	if len(vs) != 200 {
		t.Errorf("%d came", len(vs))
	}
	ms, err := p.API.Machines(t.Context(), "burst")
	if err != nil {
		t.Fatal(err)
	}
	if got := planet.Count(ms, "started"); got < 8 {
		t.Errorf("%d machines of 25 connections each were started for 200: %s", got, planet.States(ms))
	}
}

// TestLabHostCut kills a host with all its processes, in silence.
func TestLabHostCut(t *testing.T) {
	p := inLab(t, lab.Config{Regions: []string{"dfw", "ord", "ams"}, Roles: edgeAndHosts()})
	addr := labDeploy(t, p, "cut", "min = 1\nmax = 5")
	victim := strings.Split(answersFrom(t, p, "dfw", 0, addr), "/")[1]
	if err := p.Kill(t.Context(), victim); err != nil {
		t.Fatal(err)
	}
	var last string
	eventually(t, "new connections are served elsewhere", func() bool {
		where, err := whereFrom(t.Context(), p, "dfw", 1, addr, 2*time.Second)
		last = fmt.Sprint(where, err)
		return err == nil && !strings.Contains(where, victim)
	})
	for i := range 20 {
		if _, err := whereFrom(t.Context(), p, "dfw", i, addr, 2*time.Second); err != nil {
			t.Errorf("connection %d after that: %v (before: %s)", i, err, last)
		}
	}
	eventually(t, "the lost machine has another in its place", func() bool {
		ms, err := p.API.Machines(t.Context(), "cut")
		return err == nil && planet.Count(ms, "started") >= 1
	})
	// It comes back with what is no longer its own.
	if err := p.Start(t.Context(), victim); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if _, err := whereFrom(t.Context(), p, "dfw", i, addr, 10*time.Second); err != nil {
			t.Errorf("connection %d after %s came back: %v", i, victim, err)
		}
	}
}

// TestLabControlDead has clients served, machines woken and a server restarted with every control node dead.
func TestLabControlDead(t *testing.T) {
	p := inLab(t, lab.Config{Regions: []string{"dfw", "ord", "ams"}, Hosts: 2, Control: 3, Roles: map[string][]string{
		"dfw-1": {volant.RoleControl}, "ord-1": {volant.RoleControl}, "ams-1": {volant.RoleControl},
	}})
	addr := labDeploy(t, p, "dead", "min = 0\nidle_timeout = \"1s\"")
	answersFrom(t, p, "ams", 0, addr)
	if err := p.Until(t.Context(), "dead", "the machine sleeps", func(ms []api.Machine) bool {
		return planet.Count(ms, "suspended") > 0 && planet.Count(ms, "started") == 0
	}); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"dfw-1", "ord-1", "ams-1"} {
		if err := p.Kill(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	all := func(when string) {
		t.Helper()
		for i := range 5 {
			for _, r := range []string{"dfw", "ord", "ams"} {
				if _, err := whereFrom(t.Context(), p, r, i, addr, 10*time.Second); err != nil {
					t.Errorf("%s: a client of %s: %v", when, r, err)
				}
			}
		}
	}
	all("control dead")
	if err := p.KillOnly(t.Context(), "dfw-2", "server"); err != nil {
		t.Fatal(err)
	}
	all("a server dead too")
	if err := p.Start(t.Context(), "dfw-2"); err != nil {
		t.Fatal(err)
	}
	all("that server started again without control")
}

// TestLabFromDisk kills every server and starts them all again.
func TestLabFromDisk(t *testing.T) {
	p := inLab(t, lab.Config{Regions: []string{"dfw", "ord", "ams"}, Control: 3})
	addr := labDeploy(t, p, "disk", "min = 1")
	answersFrom(t, p, "ord", 0, addr)
	for _, n := range p.Nodes() {
		if err := p.Kill(t.Context(), n.Name); err != nil {
			t.Fatal(err)
		}
	}
	started := make(chan error, len(p.Nodes()))
	for _, n := range p.Nodes() { // together: none is whole before most are there
		go func() { started <- p.Start(t.Context(), n.Name) }()
	}
	for range p.Nodes() {
		if err := <-started; err != nil {
			t.Error(err)
		}
	}
	for _, r := range []string{"dfw", "ord", "ams"} {
		eventually(t, "a client of "+r+" is served", func() bool {
			_, err := whereFrom(t.Context(), p, r, 1, addr, 5*time.Second)
			return err == nil
		})
	}
}
