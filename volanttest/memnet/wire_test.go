package memnet_test

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/volant-edge/volant/volanttest/memnet"
)

func TestWires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &memnet.Network{}
		a, b := netip.MustParseAddr("fd00::a"), netip.MustParseAddr("fd00::b")
		var cut atomic.Bool
		n.SetWire(func(_, _ netip.Addr) memnet.Wire { return memnet.Wire{Delay: 10 * time.Millisecond, Cut: cut.Load()} })
		at := netip.AddrPortFrom(b, 80)
		took := func(want time.Duration, what string, f func()) {
			t.Helper()
			began := time.Now()
			f()
			if got := time.Since(began); got != want {
				t.Errorf("%s took %s, want %s", what, got, want)
			}
		}
		took(20*time.Millisecond, "a refusal", func() {
			if _, err := n.DialFrom(t.Context(), a, at); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("got %v", err)
			}
		})
		l, err := n.Listen(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					_, _ = io.Copy(c, c)
					_ = c.Close()
				}()
			}
		}()
		word := make([]byte, 4)
		took(40*time.Millisecond, "dial and echo", func() {
			c, err := n.DialFrom(t.Context(), a, at)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := io.WriteString(c, "ping"); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadFull(c, word); err != nil || string(word) != "ping" {
				t.Errorf("got %q, %v", word, err)
			}
		})
		c, err := n.DialFrom(t.Context(), a, at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		cut.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.DialFrom(ctx, a, at); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial over a cut wire: %v", err)
		}
		if _, err := io.WriteString(c, "pong"); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
		cut.Store(false)
		if _, err := io.ReadFull(c, word); err != nil || string(word) != "pong" {
			t.Errorf("what was written while the wire was cut: %q, %v", word, err)
		}
		if err := c.(*memnet.Conn).CloseWrite(); err != nil {
			t.Error(err)
		}
		if _, err := c.Read(word); !errors.Is(err, io.EOF) {
			t.Errorf("after the end: %v", err)
		}
	})
}
