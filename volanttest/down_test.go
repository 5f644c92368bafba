package volanttest_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/volanttest"
)

// served opens n connections at once and says how many were answered within the time.
func served(t *testing.T, p *volanttest.Platform, dial func() (net.Conn, error), n int, within time.Duration) ([]net.Conn, int) {
	t.Helper()
	var conns []net.Conn
	var answered atomic.Int32
	for range n {
		c, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		go func() {
			if volanttest.Echo(c) == nil {
				answered.Add(1)
			}
		}()
	}
	time.Sleep(within)
	return conns, int(answered.Load())
}

// The data plane needs no control plane: with the store down nobody holds an app's term, and the connections that
// wait wake as many sleeping machines as they need.
func TestWithTheStoreDownConnectionsWakeWhatTheyNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		addr, _ := p.Deploy("web", volanttest.Image)
		dial := func() (net.Conn, error) { return p.Net.Dial(context.Background(), addr) }
		conns, n := served(t, p, dial, 60, 10*time.Second)
		if n != 60 {
			t.Fatalf("%d of 60 connections were answered", n)
		}
		for _, c := range conns {
			c.Close()
		}
		time.Sleep(5 * time.Minute)
		if got := p.States("web"); got["suspended"] != 3 {
			t.Fatalf("machines are %v, want 3 suspended", got)
		}
		p.Store.SetDown(true)
		defer p.Store.SetDown(false)
		time.Sleep(20 * time.Second) // the term runs out
		conns, n = served(t, p, dial, 60, 10*time.Second)
		for _, c := range conns {
			c.Close()
		}
		if n != 60 {
			t.Errorf("with the store down %d of 60 connections were answered; machines are %v", n, p.States("web"))
		}
	})
}

// A machine that scaling drained takes connections again when the scaler is gone and there is no other.
func TestWithTheStoreDownADrainedMachineTakesConnectionsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		addr, _ := p.Deploy("web", volanttest.Image, scaled(func(s *api.ScalePatch) {
			two, idle := 2, volant.Duration(20*time.Second)
			s.Max, s.IdleTimeout = &two, &idle
		}))
		dial := func() (net.Conn, error) { return p.Net.Dial(context.Background(), addr) }
		var conns []net.Conn
		for range 30 { // on two machines
			c, err := p.Connect(addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conns = append(conns, c)
			time.Sleep(2 * time.Second)
		}
		for _, c := range conns[1:29] {
			c.Close()
		}
		time.Sleep(time.Minute)
		if draining := p.Draining("web"); draining != 1 {
			t.Fatalf("%d machines drain, want 1", draining)
		}
		p.Store.SetDown(true)
		defer p.Store.SetDown(false)
		time.Sleep(20 * time.Second)
		more, n := served(t, p, dial, 40, 10*time.Second)
		for _, c := range more {
			c.Close()
		}
		if n != 40 {
			t.Errorf("%d of 40 connections were answered; %d machines drain", n, p.Draining("web"))
		}
	})
}

// A machine that was about to be created when its app was destroyed is destroyed as well.
func TestAMachineThatComesAfterItsAppsEndIsDestroyed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		addr, _ := p.Deploy("web", volanttest.Image)
		c, err := p.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		snap := p.Node.Catalog().Snapshot()
		a, _ := snap.AppByName("web")
		ctx := context.Background()
		if err := p.API.DestroyApp(ctx, "web", true); err != nil {
			t.Fatal(err)
		}
		late := volant.Machine{Name: "late", Node: "0a0b0c0d", Region: "local", Run: volant.RunAuto, Image: volanttest.Image, Version: "1"}
		late.Meta = volant.Meta{Kind: volant.KindMachine, Org: a.Org, App: a.App, ID: string(volant.NewMachineID())}
		if _, err := store.Create(ctx, p.Store, "scaler", &late); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		for id, m := range p.Node.Catalog().Snapshot().Machines(a.App) {
			if !m.Tombstone {
				t.Errorf("machine %s (%s) of a destroyed app is wished %s, want its tombstone", id, m.Name, m.Run)
			}
		}
	})
}
