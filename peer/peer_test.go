package peer_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/peer"
	"github.com/volant-edge/volant/volanttest/memnet"
)

const (
	server  volant.NodeID = "0a0b0c0d"
	friend  volant.NodeID = "11111111"
	removed volant.NodeID = "22222222"
)

type order struct{ Name string }

// dialAs dials as a node, as its mesh address lets it.
func dialAs(n *memnet.Network, id volant.NodeID) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, _, addr string) (net.Conn, error) {
		return n.DialFrom(ctx, volant.MeshAddr(id), netip.MustParseAddrPort(addr))
	}
}

func TestCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &memnet.Network{}
		s := peer.New(peer.Config{Known: func(id volant.NodeID) bool { return id == friend }})
		peer.Handle(s, "POST /hello", func(_ context.Context, from volant.NodeID, in order) (any, error) {
			if in.Name == "full" {
				return nil, volant.Errorf(volant.ErrNoCapacity, "no room").WithRemedy("wait")
			}
			return order{in.Name + " from " + string(from)}, nil
		})
		s.Raw("GET /half", func(w http.ResponseWriter, _ peer.Request) error {
			if _, err := io.WriteString(w, "the first half"); err != nil {
				return err
			}
			return errors.New("broke")
		})
		ctx, cancel := context.WithCancel(t.Context())
		l, err := n.Listen(ctx, netip.AddrPortFrom(volant.MeshAddr(server), volant.PeerPort))
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx, l) }()
		c := peer.NewClient(dialAs(n, friend))
		defer c.Close()

		var got order
		if err := c.Call(ctx, server, "POST /hello", order{"ann"}, &got); err != nil || got.Name != "ann from 11111111" {
			t.Errorf("got %v, %v", got, err)
		}
		err = c.Call(ctx, server, "POST /hello", order{"full"}, nil)
		var e *volant.Error
		if !errors.Is(err, volant.ErrNoCapacity) || !errors.As(err, &e) || e.Remedy != "wait" {
			t.Errorf("an error came back as %v", err)
		}
		if err := c.Call(ctx, server, "POST /unknown", nil, nil); !errors.Is(err, volant.ErrUnserved) {
			t.Errorf("a call that nobody knows: %v", err)
		}
		if err := c.Call(ctx, server, "POST /hello", order{strings.Repeat("x", peer.MaxBody)}, nil); !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("a call without bounds: %v", err)
		}
		res, err := c.Open(ctx, server, "GET /half", nil, nil)
		if err == nil {
			_, err = io.ReadAll(res.Body)
			_ = res.Body.Close()
		}
		if err == nil {
			t.Error("half an answer was taken for a whole one")
		}
		stranger := peer.NewClient(dialAs(n, removed))
		defer stranger.Close()
		if err := stranger.Call(ctx, server, "POST /hello", order{"ann"}, nil); !errors.Is(err, volant.ErrForbidden) {
			t.Errorf("a node that was removed: %v", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := c.Call(t.Context(), server, "POST /hello", nil, nil); !errors.Is(err, volant.ErrUnavailable) {
			t.Errorf("a node that is gone: %v", err)
		}
	})
}
