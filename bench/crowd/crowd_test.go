package crowd_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/volant-edge/volant/bench/crowd"
	"github.com/volant-edge/volant/volanttest/testserver"
)

func serve(t *testing.T) (*testserver.Server, net.Listener) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := new(testserver.Server)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(ctx, l); err != nil {
			t.Errorf("serve: %v", err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return s, l
}

func TestUsersComeAndLeaveInOrder(t *testing.T) {
	s, l := serve(t)
	c := crowd.New(crowd.Config{
		Addr: l.Addr().String(), Sources: crowd.Loopback(3), Life: 5 * time.Millisecond, Pause: time.Millisecond,
	})
	if err := c.Stay(t.Context(), 4); err != nil {
		t.Fatal(err)
	}
	c.Want(5)
	done := make(chan struct{})
	go func() { c.Run(t.Context()); close(done) }()
	for c.Counts().Left < 20 {
		time.Sleep(time.Millisecond)
	}
	c.End()
	<-done
	n := c.Counts()
	if n.Open != 0 || n.Lost != 0 || n.Refused != 0 || n.Left != n.Came {
		t.Errorf("%+v, want all to have left", n)
	}
	if _, most, total := s.Counts(); most > 9 || total != n.Came || s.Bad() != 0 {
		t.Errorf("the server saw %d at once, %d in all, %d bad; want at most 9, %d, 0", most, total, s.Bad(), n.Came)
	}
	if got := c.Alive(nil); got != 4 {
		t.Errorf("%d of 4 who stay exchanged bytes", got)
	}
}

// What closes a connection after a byte came is told from what refused it.
func TestLostIsNotRefused(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for i := 0; ; i++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if i%2 == 0 {
				c.Close()
				continue
			}
			go func() { // echoes once, wrong from then on
				defer c.Close()
				buf := make([]byte, 4096)
				n, err := c.Read(buf)
				for i, b := range buf[:n] {
					if b == '\n' {
						n, err = copy(buf, buf[i+1:n]), nil
						break
					}
				}
				if n == 0 {
					n, err = c.Read(buf)
				}
				if err == nil {
					_, _ = c.Write(buf[:n]) // the crowd tells how it went
					_, _ = c.Read(buf)
				}
			}()
		}
	}()
	c := crowd.New(crowd.Config{Addr: l.Addr().String(), Life: time.Hour, Pause: time.Millisecond, Bytes: 100})
	c.Want(2)
	done := make(chan struct{})
	go func() { c.Run(t.Context()); close(done) }()
	for n := c.Counts(); n.Lost == 0 || n.Refused == 0; n = c.Counts() {
		time.Sleep(time.Millisecond)
	}
	c.End()
	<-done
	if n := c.Counts(); len(n.Errors) == 0 {
		t.Errorf("no error is told: %+v", n)
	}
}
