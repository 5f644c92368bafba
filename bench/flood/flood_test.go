package flood_test

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/volant-edge/volant/bench/crowd"
	"github.com/volant-edge/volant/bench/flood"
	"github.com/volant-edge/volant/volanttest/testserver"
)

// odd refuses every other connection.
type odd struct {
	net.Listener
	n int
}

func (o *odd) Accept() (net.Conn, error) {
	for {
		c, err := o.Listener.Accept()
		if o.n++; err != nil || o.n%2 == 1 {
			return c, err
		}
		c.Close()
	}
}

func TestEveryAttemptIsAccountedFor(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := new(testserver.Server)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(ctx, &odd{Listener: l}); err != nil {
			t.Errorf("serve: %v", err)
		}
	}()
	defer func() { cancel(); l.Close(); <-done }()
	got := flood.Run(t.Context(), flood.Config{
		Addr: l.Addr().String(), Sources: crowd.Loopback(4), N: 100, Hold: time.Millisecond, Within: time.Minute,
	})
	if got.Served != 50 || got.Refused != 50 || got.Lost+got.Failed+got.Silent != 0 {
		t.Errorf("%+v, want half of 100 served and half refused", got)
	}
}
