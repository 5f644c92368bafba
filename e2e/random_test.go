package e2e_test

import (
	"context"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/volanttest/live"
	"github.com/volant-edge/volant/volanttest/testserver"
)

// The server is killed at moments that nobody has chosen, in the middle of whatever it does: wakes, sleeps,
// deploys, destroys, scaling. A connection goes on all the while, those that wait are served, and in the end all
// fits the records. VOLANT_SEED repeats a run's choices.
func TestServerKilledAtRandomMoments(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("VOLANT_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("VOLANT_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	s := start(t)
	other := deploy(t, s, "held", "testserver", 8080, "min = 0")
	held, err := testserver.StartEcho(dial(t, other), 1)
	if err != nil {
		t.Fatal(err)
	}
	const scale = "min = 0\nmax = 3\nidle_timeout = \"1h\""
	addr := deploy(t, s, "app", "testserver", 8080, scale)
	ctx := context.WithoutCancel(t.Context())
	each := func(do func(id string) error) func() error {
		return func() error {
			ms, err := s.API.Machines(ctx, "app")
			for _, m := range ms {
				if err := do(m.ID); err != nil {
					return err
				}
			}
			return err
		}
	}
	action := func(what string) func() error {
		return each(func(id string) error { return s.API.MachineAction(ctx, "app", id, what) })
	}
	acts := map[string]func() error{
		"suspend": action("suspend"), "stop": action("stop"), "restart": action("restart"),
		"destroy": each(func(id string) error { return s.API.DestroyMachine(ctx, "app", id, true) }),
		"deploy": func() error {
			_, err := s.Deploy(ctx, "app", archive(t, "testserver"), config("app", 8080, scale))
			return err
		},
		"scale out": func() error { return many(addr, 41) },
		"scale in":  func() error { return idleTimeout(ctx, s, time.Second) },
	}
	names := []string{"suspend", "stop", "restart", "destroy", "deploy", "scale out", "scale in"}
	var wg sync.WaitGroup
	defer wg.Wait() // they log
	for range 16 {
		name := names[r.IntN(len(names))]
		after := time.Duration(r.IntN(600)) * time.Millisecond
		ask(t, addr, "count")
		wg.Go(func() {
			if err := acts[name](); err != nil {
				t.Logf("%s, killed after %v: %v", name, after, err)
			}
		})
		served := make(chan bool, 1)
		wg.Go(func() { served <- askQuietly(addr) })
		time.Sleep(after)
		s.Kill()
		if err := held.Exchange(1000); err != nil {
			t.Fatal(err)
		}
		if err := s.Run(ctx); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if ok := <-served; !ok && !slices.Contains([]string{"suspend", "stop", "restart", "destroy"}, name) { // these end connections by order
			t.Errorf("%s, killed after %v: a connection was not served", name, after)
		}
		ask(t, addr, "count")
		eventually(t, "the idle timeout is as it was", func() bool { return idleTimeout(ctx, s, time.Hour) == nil })
		sound(t, s)
	}
	if err := held.Exchange(1000); err != nil {
		t.Error(err)
	}
}

// many opens n connections at once and holds them until all were answered.
func many(addr string, n int) error {
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range n {
		c, err := net.DialTimeout("tcp", addr, time.Minute)
		if err != nil {
			return err
		}
		conns = append(conns, c)
	}
	for _, c := range conns {
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			return err
		}
		if _, err := testserver.Ask(c, "count"); err != nil {
			return err
		}
	}
	return nil
}

func idleTimeout(ctx context.Context, s *live.Server, d time.Duration) error {
	v := volant.Duration(d)
	_, err := s.API.SetScale(ctx, "app", api.ScalePatch{IdleTimeout: &v})
	return err
}
