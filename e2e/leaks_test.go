package e2e_test

import (
	"net"
	"testing"

	"github.com/volant-edge/volant/volanttest/live"
)

// sound waits until all that a server has made fits its records: nothing too much, nothing missing.
func sound(t testing.TB, s *live.Server) {
	t.Helper()
	var found []string
	ok := within(func() bool {
		var err error
		if found, err = s.Audit(t.Context()); err != nil {
			found = append(found, err.Error())
		}
		return len(found) == 0
	})
	if !ok {
		t.Fatalf("what the server has made does not fit its records: %q", found)
	}
}

// Nothing is too much and nothing is missing at any step of an app's life, and nothing is left after it.
func TestWhatIsThereFitsTheRecords(t *testing.T) {
	t.Parallel()
	s := start(t)
	sound(t, s)
	addr := deploy(t, s, "app", "testserver", 8080, "min = 0\nmax = 3\nidle_timeout = \"1s\"\nkeep = \"1s\"")
	sound(t, s)
	var held []net.Conn
	for range 41 { // the soft limit of a machine is 20
		c := dial(t, addr)
		askOn(t, c, "hold")
		held = append(held, c)
	}
	eventually(t, "three machines serve", func() bool { return awake(t, s, "app") == 3 })
	sound(t, s)
	for _, c := range held {
		c.Close()
	}
	eventually(t, "all machines sleep and are destroyed", func() bool { return len(machines(t, s, "app")) == 0 })
	sound(t, s)
	ask(t, addr, "ram-counter")
	sleep(t, s, "app", "suspend")
	sound(t, s)
	ask(t, addr, "ram-counter")
	sleep(t, s, "app", "stop")
	sound(t, s)
	if err := s.API.DestroyApp(t.Context(), "app", true); err != nil {
		t.Fatal(err)
	}
	sound(t, s)
}
