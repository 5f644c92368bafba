package node_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/join"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/volanttest"
	"github.com/volant-edge/volant/why"
)

// cluster is a control node that servers ask to be let in.
type cluster struct {
	*volanttest.Platform
	t *testing.T
}

func inCluster(t *testing.T, test func(c *cluster)) {
	synctest.Test(t, func(t *testing.T) {
		p := volanttest.New(t)
		defer p.Close()
		test(&cluster{p, t})
	})
}

func (c *cluster) token(in api.CreateJoinToken) join.Token {
	c.t.Helper()
	out, err := c.API.CreateJoinToken(c.t.Context(), in)
	if err != nil {
		c.t.Fatal(err)
	}
	tok, err := join.ParseToken(out.Token)
	if err != nil {
		c.t.Fatal(err)
	}
	return tok
}

// ask asks to be let in as node number i.
func (c *cluster) ask(tok join.Token, i int, change ...func(*join.Request)) (join.Answer, error) {
	r := join.Request{
		Node: volant.NodeID(fmt.Sprintf("beef000%d", i)), Name: fmt.Sprintf("ams-%d", i), Region: "ams", Roles: []string{"edge", "host"},
		Key: wgKey(byte(i)), Endpoint: netip.MustParseAddrPort("[::]:4281"), API: control.HashToken(rootOf(i)),
	}
	for _, f := range change {
		f(&r)
	}
	q := join.Asker{Dial: func(ctx context.Context, _, addr string) (net.Conn, error) {
		return c.Net.DialFrom(ctx, netip.MustParseAddr("198.51.100.7"), netip.MustParseAddrPort(addr))
	}}
	return q.Ask(c.t.Context(), "192.0.2.1:4281", tok, r)
}

// letIn asks to be let in as node 1, which must work.
func (c *cluster) letIn(tok join.Token) {
	c.t.Helper()
	if _, err := c.ask(tok, 1); err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
}

func rootOf(i int) string { return fmt.Sprintf("root token of node %d", i) }

func wgKey(b byte) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) }

func (c *cluster) nodes() []*volant.Node {
	c.t.Helper()
	all, _, err := store.All[volant.Node](c.t.Context(), c.Store, "node/")
	if err != nil {
		c.t.Fatal(err)
	}
	return all
}

func (c *cluster) record(id string) *volant.Node {
	c.t.Helper()
	for _, n := range c.nodes() {
		if n.ID == id {
			return n
		}
	}
	c.t.Fatalf("there is no record of node %s", id)
	return nil
}

func (c *cluster) uses(tok join.Token) int {
	c.t.Helper()
	rec, err := store.Load[volant.JoinToken](c.t.Context(), c.Store, volant.RecordKey(volant.KindJoin, "", tok.ID()))
	if err != nil {
		c.t.Fatal(err)
	}
	return rec.Uses
}

func TestServerJoins(t *testing.T) {
	inCluster(t, func(c *cluster) {
		tok := c.token(api.CreateJoinToken{})
		a, err := c.ask(tok, 1)
		if err != nil {
			t.Fatal(err)
		}
		if len(a.Nodes) != 2 || len(a.Secrets) != 32 || a.Domain != "localhost" {
			t.Errorf("answer: %d nodes, key of %d bytes, domain %q", len(a.Nodes), len(a.Secrets), a.Domain)
		}
		if want := "http://[fd76:6f6c:616e:a0b:c0d::1]:4285"; len(a.Stores) != 1 || a.Stores[0] != want {
			t.Errorf("stores %v, want %s", a.Stores, want)
		}
		n := c.record("beef0001")
		if n.Region != "ams" || n.Mesh.Key != wgKey(1) || n.Mesh.Endpoint != netip.MustParseAddrPort("198.51.100.7:4281") {
			t.Errorf("record %+v, which should have the address that was seen", n)
		}
		if n := c.uses(tok); n != 0 {
			t.Errorf("%d uses are left, want 0", n)
		}
		if seen := c.Why.Query(why.Query{Node: "beef0001"}); len(seen) != 1 || seen[0].Rule != "node_joined" {
			t.Errorf("on record: %+v", seen)
		}
	})
}

func TestJoinAgainAfterALostAnswer(t *testing.T) {
	inCluster(t, func(c *cluster) {
		tok := c.token(api.CreateJoinToken{})
		first, err := c.ask(tok, 1)
		if err != nil {
			t.Fatal(err)
		}
		again, err := c.ask(tok, 1)
		if err != nil {
			t.Fatalf("the same node with the same key: %v", err)
		}
		if !bytes.Equal(first.Secrets, again.Secrets) || len(again.Nodes) != 2 || c.uses(tok) != 0 {
			t.Errorf("%d nodes, %d uses left", len(again.Nodes), c.uses(tok))
		}
		if gen := c.record("beef0001").Generation; gen != 1 {
			t.Errorf("the record was written %d times", gen)
		}
	})
}

func TestWhoIsNotLetIn(t *testing.T) {
	for _, row := range []struct {
		name   string
		in     api.CreateJoinToken
		before func(c *cluster, tok join.Token)
		as     int
		change func(*join.Request)
		want   error
		text   string
	}{
		{name: "another role", change: func(r *join.Request) { r.Roles = []string{"control"} }, want: volant.ErrForbidden, text: "roles edge,host"},
		{name: "another region", in: api.CreateJoinToken{Region: "ord"}, want: volant.ErrForbidden, text: "region ord"},
		{
			name: "after its end", in: api.CreateJoinToken{TTL: "1m"}, want: volant.ErrUnauthorized, text: "expired",
			before: func(*cluster, join.Token) { time.Sleep(2 * time.Minute) },
		},
		{
			name: "by a token that was revoked", want: volant.ErrUnauthorized, text: "revoked",
			before: func(c *cluster, tok join.Token) {
				if err := c.API.RevokeJoinToken(c.t.Context(), tok.ID()); err != nil {
					c.t.Fatal(err)
				}
			},
		},
		{name: "by a token that is used up", before: (*cluster).letIn, as: 2, want: volant.ErrUnauthorized, text: "used up"},
		{
			name: "by the ID of another with another key", in: api.CreateJoinToken{Uses: 2}, before: (*cluster).letIn,
			change: func(r *join.Request) { r.Key = wgKey(9) }, want: volant.ErrExists, text: "another key",
		},
		{
			name: "by the name of another", in: api.CreateJoinToken{Uses: 2}, before: (*cluster).letIn, as: 2,
			change: func(r *join.Request) { r.Name = "ams-1" }, want: volant.ErrExists, text: "--name",
		},
		{name: "as the control node itself", change: func(r *join.Request) { r.Node = "0a0b0c0d" }, want: volant.ErrExists, text: "another key"},
		{
			name: "when it was removed", in: api.CreateJoinToken{Uses: 2}, want: volant.ErrPrecondition, text: "was removed",
			before: func(c *cluster, tok join.Token) {
				c.letIn(tok)
				if _, err := c.API.RemoveNode(c.t.Context(), "beef0001", false); err != nil {
					c.t.Fatal(err)
				}
			},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			inCluster(t, func(c *cluster) {
				tok := c.token(row.in)
				if row.before != nil {
					row.before(c, tok)
				}
				nodes := len(c.nodes())
				var change []func(*join.Request)
				if row.change != nil {
					change = append(change, row.change)
				}
				_, err := c.ask(tok, max(1, row.as), change...)
				if !errors.Is(err, row.want) || !strings.Contains(err.Error(), row.text) {
					t.Errorf("got %v, want %v with %q", err, row.want, row.text)
				}
				if got := len(c.nodes()); got != nodes {
					t.Errorf("%d nodes, want %d as before", got, nodes)
				}
				if seen := c.Why.Query(why.Query{Kinds: []why.Kind{why.Change}, Limit: 1}); len(seen) == 0 || seen[0].Rule != "node_refused" {
					t.Errorf("the refusal is not on record: %+v", seen)
				}
			})
		})
	}
}

func TestGuessedTokensPushNothingOutOfTheRecord(t *testing.T) {
	inCluster(t, func(c *cluster) {
		tok := c.token(api.CreateJoinToken{})
		for range 10 {
			if _, err := c.ask(join.NewToken(tok.Cluster), 1); !errors.Is(err, volant.ErrUnauthorized) {
				t.Fatal(err)
			}
		}
		if seen := c.Why.Query(why.Query{Node: "beef0001"}); len(seen) != 1 {
			t.Errorf("%d records", len(seen))
		}
	})
}

// Of servers that join at once by a token with two uses, two are let in.
func TestUsesAreCountedExactly(t *testing.T) {
	inCluster(t, func(c *cluster) {
		tok := c.token(api.CreateJoinToken{Uses: 2})
		const all = 6
		done := make(chan error, all)
		for i := range all {
			go func() {
				_, err := c.ask(tok, i+1)
				done <- err
			}()
		}
		in := 0
		for range all {
			err := <-done
			if err == nil {
				in++
			} else if !errors.Is(err, volant.ErrUnauthorized) {
				t.Error(err)
			}
		}
		if in != 2 || len(c.nodes()) != 3 {
			t.Errorf("%d were let in, %d nodes", in, len(c.nodes()))
		}
	})
}

// A node's own root asks the API by a token of its own, which ends with the node.
func TestTokenOfANodeEndsWithIt(t *testing.T) {
	inCluster(t, func(c *cluster) {
		c.letIn(c.token(api.CreateJoinToken{}))
		own := c.Client(rootOf(1))
		if ns, err := own.Nodes(c.t.Context()); err != nil || len(ns) != 2 {
			t.Fatalf("%d nodes, %v", len(ns), err)
		}
		if _, err := c.API.RemoveNode(c.t.Context(), "ams-1", true); err != nil {
			t.Fatal(err)
		}
		if _, err := own.Nodes(c.t.Context()); !errors.Is(err, volant.ErrUnauthorized) {
			t.Errorf("after its removal: %v", err)
		}
	})
}
