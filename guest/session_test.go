package guest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/guest"
)

func TestCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		host, inside := net.Pipe()
		serve(t, inside, b)
		s := open(t, host)
		ctx := t.Context()

		if got, want := s.Hello(), (guest.Hello{Version: guest.Version, BootID: "boot"}); !cmp.Equal(got, want) {
			t.Errorf("Hello: %s", cmp.Diff(want, got))
		}
		if err := s.Start(ctx); !errors.Is(err, volant.ErrPrecondition) {
			t.Errorf("Start before Configure: got %v, want kind precondition", err)
		}
		conf := guest.Config{Hostname: "m", Args: []string{"x"}, Env: map[string]string{"BIG": strings.Repeat("e", 300<<10)}, Entropy: []byte{1, 2}}
		if err := s.Configure(ctx, conf); err != nil {
			t.Fatalf("Configure: %v", err)
		}
		if !cmp.Equal(b.config, conf, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})) {
			t.Error("Configure: the guest got another config")
		}
		conf.Env["BIG"] = strings.Repeat("e", 2<<20)
		if err := s.Configure(ctx, conf); !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("Configure with 2 MiB: got %v, want kind invalid", err)
		}
		file := guest.File{Path: "/etc/app/key", Mode: 0o400, Data: bytes.Repeat([]byte{7}, guest.MaxFile)}
		if err := s.Put(ctx, file); err != nil || !cmp.Equal(b.files[file.Path], file) {
			t.Errorf("Put: %v; the guest has the file: %v", err, cmp.Equal(b.files[file.Path], file))
		}
		if err := s.Start(ctx); err != nil {
			t.Errorf("Start: %v", err)
		}
		if err := s.Signal(ctx, 15); err != nil || !cmp.Equal(b.signals, []int{15}) {
			t.Errorf("Signal: %v, guest got %v", err, b.signals)
		}
		if st, err := s.Stats(ctx); err != nil || st.Processes != 3 {
			t.Errorf("Stats: got %+v, %v", st, err)
		}
		if ps, err := s.Processes(ctx); err != nil || len(ps) != 1 || ps[0].PID != 7 || len(ps[0].Listens) != 1 {
			t.Errorf("Processes: got %+v, %v", ps, err)
		}
		if err := errors.Join(s.Thaw(ctx, guest.Thaw{Now: time.Unix(7, 0), Entropy: []byte{3}}), s.Freeze(ctx)); err != nil || b.thaw.Now.Unix() != 7 {
			t.Errorf("Thaw, Freeze: %v", err)
		}
		b.exit <- guest.Exit{Code: 137, Signal: 9, OOM: true}
		if e, err := s.Wait(ctx); err != nil || e != (guest.Exit{Code: 137, Signal: 9, OOM: true}) {
			t.Errorf("Wait: got %+v, %v", e, err)
		}
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		<-s.Done()
		if err := s.Freeze(ctx); !errors.Is(err, guest.ErrClosed) {
			t.Errorf("Freeze after Shutdown: got %v, want ErrClosed", err)
		}
	})
}

// Streams must reach the guest in the order of their numbers, whoever opens them.
func TestManyCallsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, inside := net.Pipe()
		serve(t, inside, newBackend())
		s := open(t, host)
		for range 50 {
			errs := make(chan error, 8)
			for range cap(errs) {
				go func() {
					_, err := s.Stats(t.Context())
					errs <- err
				}()
			}
			for range cap(errs) {
				if err := <-errs; err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

func TestServeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, inside := net.Pipe()
		got := make(chan error)
		go func() { got <- guest.Serve(t.Context(), inside, newBackend()) }()
		s := open(t, host)
		if err := s.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := <-got; !errors.Is(err, guest.ErrShutdown) {
			t.Errorf("Serve after Shutdown: got %v, want ErrShutdown", err)
		}

		// A host that has left since is no reason to stay.
		host, inside = net.Pipe()
		b := newBackend()
		b.atShutdown = func() { _ = host.Close() }
		go func() { got <- guest.Serve(t.Context(), inside, b) }()
		s = open(t, host)
		if err := s.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown by a host that leaves: %v", err)
		}
		if err := <-got; !errors.Is(err, guest.ErrShutdown) {
			t.Errorf("Serve after Shutdown by a host that left: got %v, want ErrShutdown", err)
		}

		host, inside = net.Pipe()
		ctx, stop := context.WithCancel(t.Context())
		go func() { got <- guest.Serve(ctx, inside, newBackend()) }()
		s = open(t, host)
		stop()
		if err := <-got; err != nil {
			t.Errorf("Serve after its ctx: got %v, want nil", err)
		}
		<-s.Done()
	})
}

func TestWaitEndsWithContextAndSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, inside := net.Pipe()
		serve(t, inside, newBackend())
		s := open(t, host)
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		if _, err := s.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait: got %v, want deadline", err)
		}
		time.AfterFunc(time.Minute, func() { _ = s.Close() })
		if _, err := s.Wait(t.Context()); !errors.Is(err, guest.ErrClosed) {
			t.Errorf("Wait: got %v, want ErrClosed", err)
		}
	})
}

func TestOpenGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, _ := net.Pipe() // nobody reads: the guest does not boot
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		if _, err := guest.Open(ctx, host); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Open: got %v, want deadline", err)
		}
		host, inside := net.Pipe()
		_ = inside.Close()
		if _, err := guest.Open(t.Context(), host); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("Open on a dead link: got %v, want EOF or closed pipe", err)
		}
	})
}

func TestExec(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, inside := net.Pipe()
		serve(t, inside, newBackend())
		s := open(t, host)
		in := make([]byte, 3<<20) // many windows
		rand.Read(in)
		var out, errOut bytes.Buffer
		exit, err := s.Exec(t.Context(), guest.Exec{Args: []string{"cat"}, Stdin: bytes.NewReader(in), Stdout: &out, Stderr: &errOut})
		if err != nil || exit.Code != 3 {
			t.Fatalf("Exec: got %+v, %v, want code 3", exit, err)
		}
		if !bytes.Equal(out.Bytes(), in) {
			t.Errorf("stdout: %d bytes differ from the %d of stdin", out.Len(), len(in))
		}
		if got, want := errOut.String(), "3145728 bytes"; got != want {
			t.Errorf("stderr: got %q, want %q", got, want)
		}
		if exit, err := s.Exec(t.Context(), guest.Exec{Args: []string{"cat"}}); err != nil || exit.Code != 3 {
			t.Errorf("Exec without stdio: got %+v, %v", exit, err)
		}
		if _, err := s.Exec(t.Context(), guest.Exec{Args: []string{"nonsense"}}); !errors.Is(err, volant.ErrNotFound) {
			t.Errorf("Exec of no program: got %v, want kind not found", err)
		}
	})
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("the client has gone") }

func TestExecEndsEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		host, inside := net.Pipe()
		serve(t, inside, b)
		s := open(t, host)
		ended := make(chan error, 1)
		b.execs["flood"] = func(_ context.Context, e guest.Exec) (guest.Exit, error) {
			for {
				if _, err := e.Stdout.Write(make([]byte, 4096)); err != nil {
					ended <- err
					return guest.Exit{}, err
				}
			}
		}
		_, err := s.Exec(t.Context(), guest.Exec{Args: []string{"flood"}, Stdout: brokenWriter{}})
		if err == nil || !strings.Contains(err.Error(), "the client has gone") {
			t.Errorf("Exec: got %v, want the writer's error", err)
		}
		<-ended
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		if _, err := s.Exec(ctx, guest.Exec{Args: []string{"sleep"}}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Exec: got %v, want deadline", err)
		}
	})
}

// gate takes nothing until its channel is closed, so that the other side's window fills.
type gate struct{ open <-chan struct{} }

func (g gate) Write(b []byte) (int, error) { <-g.open; return len(b), nil }

func TestReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		port := newSerial()
		serve(t, port, b)
		killed := make(chan struct{}, 100)
		b.execs["yes"] = func(_ context.Context, e guest.Exec) (guest.Exit, error) {
			for {
				if _, err := e.Stdout.Write([]byte(strings.Repeat("y\n", 2000))); err != nil {
					killed <- struct{}{}
					return guest.Exit{}, err
				}
			}
		}
		for i := range 20 {
			link := port.attach()
			s := open(t, link)
			if err := s.Freeze(t.Context()); err != nil {
				t.Fatalf("round %d: Freeze: %v", i, err)
			}
			done := make(chan error, 2)
			go func() {
				_, err := s.Exec(t.Context(), guest.Exec{Args: []string{"yes"}, Stdout: gate{s.Done()}})
				done <- err
			}()
			go func() {
				_, err := s.Wait(t.Context())
				done <- err
			}()
			time.Sleep(time.Millisecond)
			if i%2 == 0 {
				// The splice: the guest sees no end, and a frame's half is the last it gets.
				_, _ = link.Write([]byte{2, 1, 0x7f, 0xff, 0, 0, 0, 9, 'x'})
			}
			n := open(t, port.attach())
			<-killed
			if err := n.Freeze(t.Context()); err != nil {
				t.Fatalf("round %d: Freeze on the next session: %v", i, err)
			}
			for range 2 {
				if err := <-done; !errors.Is(err, guest.ErrClosed) {
					t.Errorf("round %d: a call of the old session: got %v, want ErrClosed", i, err)
				}
			}
			_ = n.Close()
		}
	})
}

func TestStaleBytes(t *testing.T) {
	junk := make([]byte, 100<<10)
	rand.Read(junk)
	for name, stale := range map[string][]byte{
		"nothing":     nil,
		"one byte":    {0xf5},
		"half magic":  []byte("\xf5vol"),
		"half hail":   []byte("\xf5volantH\x01abc"),
		"half echo":   []byte("\xf5volantE\x01abc"),
		"half frame":  {2, 2, 0x7f, 0xff, 0, 0, 0, 1, 'a'},
		"half header": {2, 2},
		"zeros":       make([]byte, 1000),
		"junk":        junk,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				port := newSerial()
				_, _ = port.toGuest.write(stale)
				_, _ = port.toHost.write(stale)
				serve(t, port, newBackend())
				s := open(t, port.attach())
				if _, err := s.Stats(t.Context()); err != nil {
					t.Errorf("Stats: %v", err)
				}
			})
		})
	}
}

func TestLogsOverReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBackend()
		port := newSerial()
		serve(t, port, b)
		var got []string
		from := uint64(0)
		follow := func(n int) {
			s := open(t, port.attach())
			ctx, stop := context.WithCancel(t.Context())
			err := s.Logs(ctx, from, func(l guest.LogLine) {
				got = append(got, l.Source+" "+l.Text)
				from = l.Seq + 1
				if n--; n == 0 {
					stop()
				}
			})
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("Logs: %v", err)
			}
			_ = s.Close()
		}
		b.ring.Append("stdout", "a")
		b.ring.Append("stderr", "b")
		follow(2)
		b.ring.Append("init", "c")
		time.AfterFunc(time.Hour, func() { b.ring.Append("stdout", "d") })
		follow(2)
		if want := []string{"stdout a", "stderr b", "init c", "stdout d"}; !cmp.Equal(got, want) {
			t.Errorf("lines: %s", cmp.Diff(want, got))
		}
	})
}
