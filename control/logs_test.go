package control_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/client"
	"github.com/volant-edge/volant/volanttest"
)

// logged are the lines of an app's log, as "source text", and whether their times are in order.
func logged(t *testing.T, p *volanttest.Platform, want client.Logs) []string {
	t.Helper()
	var out []string
	var last time.Time
	err := p.API.Logs(t.Context(), "web", want, func(e api.LogEntry) error {
		if e.Time.Before(last) {
			t.Errorf("%s %q comes after a later line", e.Time, e.Message)
		}
		last = e.Time
		out = append(out, e.Source+" "+e.Message)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestLogsMergeMachinesAndEventsInOrderOfTime(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		addr, _ := p.Deploy("web", volanttest.Image)
		c, err := p.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		id := p.Machines("web")[0].ID
		time.Sleep(time.Second)
		p.Guests()[id].Print("stdout", "first words")
		synctest.Wait()
		got := logged(t, p, client.Logs{Tail: 100})
		woke := slices.IndexFunc(got, func(l string) bool { return strings.HasPrefix(l, "volant ") && strings.Contains(l, "awake after") })
		said := slices.Index(got, "stdout first words")
		if woke < 0 || said < woke {
			t.Errorf("want the wake before what the machine said, got %q", got)
		}
		if got := logged(t, p, client.Logs{Tail: 1, NoEvents: true}); !slices.Equal(got, []string{"stdout first words"}) {
			t.Errorf("the last line is %q", got)
		}
		time.Sleep(time.Hour)
		p.Guests()[id].Print("stderr", "an hour later")
		synctest.Wait()
		if got := logged(t, p, client.Logs{Tail: 100, NoEvents: true, Since: "1m"}); !slices.Equal(got, []string{"stderr an hour later"}) {
			t.Errorf("since a minute: %q", got)
		}
		c.Close() // the machine goes next
		if err := p.API.DestroyMachine(t.Context(), "web", id, true); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := logged(t, p, client.Logs{Tail: 1, NoEvents: true}); !slices.Equal(got, []string{"stderr an hour later"}) {
			t.Errorf("after the machine's end the last line is %q", got)
		}
		if got := logged(t, p, client.Logs{Machine: id, Tail: 2, NoEvents: true}); len(got) != 2 {
			t.Errorf("of the destroyed machine: %q", got)
		}
	})
}

func TestLogsFollowMachinesThatAreYetToCome(t *testing.T) {
	bubble(t, func(t *testing.T, p *volanttest.Platform) {
		addr, _ := p.Deploy("web", volanttest.Image)
		ctx, cancel := context.WithCancel(t.Context())
		lines := make(chan string, 100)
		done := make(chan error, 1)
		go func() {
			done <- p.API.Logs(ctx, "web", client.Logs{Follow: true}, func(e api.LogEntry) error {
				lines <- e.Source + " " + e.Message
				return nil
			})
		}()
		synctest.Wait()
		c, err := p.Connect(addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() // the test is over
		synctest.Wait()
		p.Guests()[p.Machines("web")[0].ID].Print("stdout", "here I am")
		time.Sleep(3 * time.Second)
		synctest.Wait()
		cancel()
		<-done
		close(lines)
		got := slices.Collect(func(yield func(string) bool) {
			for l := range lines {
				if !yield(l) {
					return
				}
			}
		})
		if n := count(got, "stdout here I am"); n != 1 {
			t.Errorf("the line came %d times: %q", n, got)
		}
		if !slices.ContainsFunc(got, func(l string) bool { return strings.HasPrefix(l, "volant ") }) {
			t.Errorf("no event among %q", got)
		}
	})
}

func count(all []string, want string) (n int) {
	for _, s := range all {
		if s == want {
			n++
		}
	}
	return n
}
